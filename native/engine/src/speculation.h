// What a caller may ask of speculation, and the figures that it leaves.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "json.h"
#include "token_tree.h"

namespace minicpm {

inline constexpr int64_t kMostLevels = 16;  // of a draft tree

// `speculate`: auto uses what pays, off nothing, a drafter's name that one always. `tree_size` counts the nodes of a
// tree, its root among them; what is not given is chosen by what was measured.
struct Speculation {
  // Of a call's options; fails for a number out of range.
  static Speculation Of(const Json& options);

  std::string speculate = "auto";
  std::optional<int64_t> tree_size, draft_depth, draft_top_k;
};

// One drafted step as it went: the path's nodes, the root first; seconds of drafting, of verifying, and of the rest.
struct Round {
  int64_t accepted() const { return static_cast<int64_t>(path.size()) - 1; }

  std::string drafter;
  Draft draft;  // as verified
  std::vector<int32_t> path = {0};
  double draft_seconds = 0, verify_seconds = 0, other_seconds = 0;
};

// Figures of one call, named as in minicpm_mlc/runtime_py/speculative/stats.py. Lists are by depth, from the first guess.
struct SpeculationStats {
  void Add(const Round& round, double commit);
  std::string ToJson() const;

  std::string decision = "off";  // what the policy thinks of each drafter at the end
  int64_t rounds = 0;            // trees verified
  int64_t plain_steps = 0;
  int64_t nodes = 0;     // verified, the roots among them
  int64_t accepted = 0;  // guessed tokens that were kept
  std::map<std::string, int64_t> drafters;        // rounds of each
  std::vector<int64_t> drafted_at, accepted_at;  // rounds whose tree had this depth; that were accepted to it
  double draft_seconds = 0, verify_seconds = 0, commit_seconds = 0, host_seconds = 0;
};

}  // namespace minicpm
