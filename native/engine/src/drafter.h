// Who guesses what follows a text.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "token_tree.h"

namespace minicpm {

// What to ask of a drafter.
struct Plan {
  int64_t depth;     // levels of the tree at most
  int64_t top_k;     // guesses after a token
  double floor = 0;  // chance below which another level is not worth its time
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  // A call begins: the sequence was cut to what a new prompt shares with it.
  virtual void Begin() {}
  // Tokens were appended to the model's sequence; its features are theirs.
  virtual void Cached() {}
  // A tree after `history`, whose last token is the root; nothing where there is none.
  virtual std::optional<Draft> Propose(const std::vector<int32_t>& history, const Plan& plan) = 0;
};

}  // namespace minicpm
