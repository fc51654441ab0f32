// Figures of one call, named as in minicpm_mlc/runtime_py/request.py.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "speculation.h"

namespace minicpm {

struct Stats {
  std::string ToJson() const;

  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, already in the cache
  double prefill_seconds = 0;
  int64_t generated_tokens = 0;
  int64_t decode_steps = 0;  // tokens computed after the prefill
  double decode_seconds = 0;
  int64_t context_used = 0;
  int64_t context = 0;
  bool sparse = false;  // the gear that the last token ran in
  int64_t blocks_read = 0;
  int64_t blocks = 0;
  SpeculationStats speculation;
  std::string finish_reason;  // stop, length, context or cancelled; empty while it runs
};

// Adds the time that it lives to a sum of seconds.
class Timing {
 public:
  explicit Timing(double* seconds) : seconds_(seconds) {}
  ~Timing() { *seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count(); }
  Timing(const Timing&) = delete;
  Timing& operator=(const Timing&) = delete;

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};

}  // namespace minicpm
