// What speculation costs and what it yields, measured while it runs: moving averages of seconds and of acceptance. As
// minicpm_mlc/runtime_py/speculative/costs.py.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "speculation.h"

namespace minicpm {

inline constexpr double kPastWeight = 0.9;  // of the past in a moving average

// A moving average of seconds; a sample counts at most three times the average, so that no outlier decides.
struct Average {
  void Add(double sample);

  double value = 0;
  int64_t samples = 0;
};

// Seconds of a plain decode step, and of verifying trees by their number of nodes.
class Costs {
 public:
  // Counts a sample, and returns it; the first one of a size is cut at three times what was expected, as a library takes
  // memory when a size is new.
  double Verified(int64_t nodes, double seconds);
  // Seconds to verify a tree of so many nodes: measured, between two measured ones, or beyond them.
  double Verify(double nodes) const;

  Average decode;

 private:
  std::map<int64_t, Average> verify_;
};

// How often each level of one kind of draft is accepted, and how that compares with what its drafter said.
class Acceptance {
 public:
  // `prior`: the chance of each level, times what the drafter says, before anything was seen.
  explicit Acceptance(double prior);

  // A tree was verified and followed `accepted` levels down.
  void Add(const Draft& draft, int64_t accepted);
  // The draft's chances in the light of what was accepted, at most those of the parent.
  std::vector<double> Reach(const Draft& draft) const;
  // The share of drafts that were accepted down to each depth.
  std::vector<double> Survival() const;

 private:
  std::vector<double> Continued(std::vector<double> values) const;

  std::vector<double> accepted_, said_, drafted_;  // by depth
  double prior_ = 1;                                // the weight that the prior has left
};

}  // namespace minicpm
