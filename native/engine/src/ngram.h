// Prompt lookup: guesses what followed the same tokens earlier in the text, without a model. As
// minicpm_mlc/runtime_py/speculative/ngram.py.
#pragma once

#include "drafter.h"

namespace minicpm {

class NgramDrafter : public Drafter {
 public:
  // The continuations of the longest suffix of `history` that occurred before, as one tree: up to plan.top_k of the
  // latest places.
  std::optional<Draft> Propose(const std::vector<int32_t>& history, const Plan& plan) override;
};

}  // namespace minicpm
