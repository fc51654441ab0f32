// Where the logits of each next token come from: a plain decode step, or a node of a tree that was verified. As
// minicpm_mlc/runtime_py/speculative/steps.py.
//
// A tree only decides whether a token's logits are there already. Tokens are drawn from the same logits, in the same
// order, with the same random numbers and penalties as without speculation, so that the text is the same.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "drafters.h"

namespace minicpm {

class Steps {
 public:
  // `limit`: tokens that the call may give.
  Steps(Model* model, Drafters* drafters, const Speculation& options, std::optional<int64_t> limit,
        SpeculationStats* stats);

  // Tokens whose keys and values are kept, those of the path being followed among them.
  int64_t size() const;
  void Begin() { drafters_->Begin(); }  // the prompt is about to be computed
  void Prefilled() { Cached(); }        // its next chunk was
  // Logits, float32 [vocabulary], after one more token; valid until the next call.
  const float* Next(int32_t id);
  // The call is over: the cache holds what plain decoding would have left there.
  void Close();

 private:
  using Clock = std::chrono::steady_clock;

  // A verified tree, the logits after its nodes, and the path followed through it.
  struct Walk {
    size_t drafter;
    Round round;
    std::vector<const float*> logits;
  };

  void Cached();
  const float* Followed(int32_t id);
  void Settle();
  const float* Decode(int32_t id);
  const float* Speculated(int32_t id);
  const float* Propose(const std::vector<size_t>& names, int32_t id);
  const float* Verify(size_t drafter, const Draft& draft, double draft_seconds, double choose_seconds);
  const std::vector<int32_t>& History(int32_t root);
  int64_t Room() const { return model_->sequence().Room(); }

  Model* model_;
  Drafters* drafters_;
  const Speculation options_;
  const bool drafting_;
  int64_t left_;
  SpeculationStats* stats_;
  std::vector<int32_t> history_;  // the text, and the root that was drafted from last
  size_t kept_ = 0;               // of it, tokens of the text
  std::optional<Walk> walk_;
};

}  // namespace minicpm
