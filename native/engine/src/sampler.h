// From logits to the next token, as minicpm_mlc/runtime_py/sampler.py does, whose rules and numbers these are.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "json.h"
#include "random.h"

namespace minicpm {

struct Sampling {
  // What a JSON object says, over `defaults`; fails for a number out of range. Other keys are not looked at.
  static Sampling Of(const Json& options, const Sampling& defaults);
  // What generation_config.json says, over what is published with MiniCPM4.
  static Sampling Published(const std::optional<Json>& generation_config);

  bool Penalises() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }

  double temperature = 0.6;  // 0: greedy
  int64_t top_k = 0;         // 0: all tokens
  double top_p = 0.95;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::optional<uint64_t> seed;  // nothing: another text each time
};

class Sampler {
 public:
  Sampler(const Sampling& sampling, int64_t vocab_size, const std::vector<int32_t>& prompt);

  // The next token of logits float32 [vocabulary]; it counts for the penalties once accepted.
  int32_t Sample(const float* logits);
  void Accept(int32_t id);

 private:
  struct Choice {
    int32_t id;
    double share;
  };

  std::vector<double> Penalised(const float* logits) const;
  std::vector<Choice> TopK(const std::vector<double>& scores) const;
  void CutTail(std::vector<Choice>* choices) const;
  int32_t Draw(const std::vector<Choice>& choices);

  const Sampling sampling_;
  const size_t vocab_size_;
  Random random_;
  std::vector<int32_t> counts_;  // in the answer
  std::vector<bool> seen_;       // in the prompt or the answer
};

}  // namespace minicpm
