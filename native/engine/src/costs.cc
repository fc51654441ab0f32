#include "costs.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace minicpm {
namespace {

constexpr double kOutlierRatio = 3;
constexpr double kSlopeSteps = 0.1;  // decode steps that one more row costs while only one number of rows was measured
constexpr size_t kDepths = kMostLevels + 1;

}  // namespace

void Average::Add(double sample) {
  ++samples;
  double keep = std::min(kPastWeight, 1 - 1 / static_cast<double>(samples));
  double highest = value ? kOutlierRatio * value : sample;
  value = keep * value + (1 - keep) * std::min(sample, highest);
}

double Costs::Verified(int64_t nodes, double seconds) {
  if (!verify_.count(nodes) && decode.samples) {
    seconds = std::min(seconds, kOutlierRatio * Verify(static_cast<double>(nodes)));
  }
  verify_[nodes].Add(seconds);
  return seconds;
}

double Costs::Verify(double nodes) const {
  std::map<int64_t, double> known = {{1, decode.value}};
  for (const auto& [size, average] : verify_) known[size] = average.value;
  double highest = 0;
  for (auto& [size, seconds] : known) highest = seconds = std::max(highest, seconds);
  auto last = std::prev(known.end());
  double beyond = nodes - static_cast<double>(last->first);
  if (beyond >= 0) {
    double slope = kSlopeSteps * decode.value;
    if (known.size() > 2) {
      auto second = std::next(known.begin());
      double run = static_cast<double>(last->first - second->first);
      slope = std::max((last->second - second->second) / run, 0.01 * decode.value);
    }
    return last->second + slope * beyond;
  }
  auto after = std::find_if(known.begin(), known.end(), [&](const auto& point) {
    return static_cast<double>(point.first) > nodes;
  });
  if (after == known.begin()) return after->second;
  auto before = std::prev(after);
  double part = (nodes - static_cast<double>(before->first)) / static_cast<double>(after->first - before->first);
  return before->second + part * (after->second - before->second);
}

Acceptance::Acceptance(double prior) : accepted_(kDepths), said_(kDepths, 1), drafted_(kDepths) {
  for (size_t depth = 0; depth < kDepths; ++depth) accepted_[depth] = std::pow(prior, static_cast<double>(depth));
}

void Acceptance::Add(const Draft& draft, int64_t accepted) {
  std::vector<int32_t> depths = draft.tree.Depths();
  std::vector<double> said(static_cast<size_t>(*std::max_element(depths.begin(), depths.end())) + 1);
  for (size_t node = 0; node < depths.size(); ++node) said[static_cast<size_t>(depths[node])] += draft.reach[node];
  prior_ *= kPastWeight;
  for (std::vector<double>* totals : {&said_, &accepted_, &drafted_}) {
    for (double& total : *totals) total *= kPastWeight;
  }
  for (size_t depth = 0; depth < said.size(); ++depth) {
    said_[depth] += said[depth];
    accepted_[depth] += static_cast<int64_t>(depth) <= accepted;
    drafted_[depth] += 1;
  }
}

std::vector<double> Acceptance::Reach(const Draft& draft) const {
  std::vector<double> factors(kDepths);
  for (size_t depth = 0; depth < kDepths; ++depth) factors[depth] = accepted_[depth] / said_[depth];
  factors = Continued(factors);
  std::vector<int32_t> depths = draft.tree.Depths();
  std::vector<double> reach = {1};
  for (size_t node = 1; node < depths.size(); ++node) {
    double own = draft.reach[node] * factors[static_cast<size_t>(depths[node])];
    reach.push_back(std::min(own, reach[static_cast<size_t>(draft.tree.parents[node])]));
  }
  return reach;
}

std::vector<double> Acceptance::Survival() const {
  std::vector<double> shares(kDepths);
  for (size_t depth = 0; depth < kDepths; ++depth) {
    shares[depth] = std::min(accepted_[depth] / (drafted_[depth] + prior_), 1.0);
  }
  shares = Continued(shares);
  for (size_t depth = 1; depth < kDepths; ++depth) shares[depth] = std::min(shares[depth], shares[depth - 1]);
  return shares;
}

// Values by depth; those of depths that were not drafted lately go on as from the two before them.
std::vector<double> Acceptance::Continued(std::vector<double> values) const {
  for (size_t depth = 2; depth < kDepths; ++depth) {
    if (drafted_[depth] < 1) values[depth] = values[depth - 1] * values[depth - 1] / std::max(values[depth - 2], 1e-9);
  }
  return values;
}

}  // namespace minicpm
