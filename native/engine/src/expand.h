// Growing a tree with a draft head: EAGLE-2's beam search.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "drafter.h"

namespace minicpm {

// Of n rows each, k guesses, the likeliest first: their tokens, and their log-probabilities.
struct Guesses {
  int64_t k = 0;
  std::vector<int32_t> tokens;
  std::vector<float> values;
};

// Tokens of the beam, and the row of the previous call that each came from -> what comes after each.
using StepHead = std::function<Guesses(const std::vector<int32_t>& ids, const std::vector<int32_t>& rows)>;

// The tree of all tokens considered, the likeliest first; probabilities multiply along a path. `after` is what comes after
// the root, one row. Each level extends the plan's top_k likeliest nodes of the level before by as many tokens each. It
// ends at the plan's depth, or where no node of a level reaches its floor.
Draft Expand(int32_t root, const Guesses& after, const StepHead& step, const Plan& plan);

}  // namespace minicpm
