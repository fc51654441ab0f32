#include "expand.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace minicpm {
namespace {

class Growth {
 public:
  Growth(int32_t root, const Guesses& after, int64_t top_k) : top_k_(std::min(top_k, after.k)) {
    values_ = {0};
    tree_ = {{root}, {-1}};
    Extend(0, after, 0);
  }

  // The likeliest nodes of the last level.
  std::vector<int32_t> Beam() const {
    std::vector<int32_t> beam = Likeliest(first_);
    beam.resize(std::min(beam.size(), static_cast<size_t>(top_k_)));
    return beam;
  }

  double Value(int32_t node) const { return values_[static_cast<size_t>(node)]; }

  void Grow(const std::vector<int32_t>& beam, const StepHead& step) {
    std::vector<int32_t> ids, rows;
    for (int32_t node : beam) {
      ids.push_back(tree_.tokens[static_cast<size_t>(node)]);
      rows.push_back((node - first_) / static_cast<int32_t>(top_k_));
    }
    Guesses guesses = step(ids, rows);
    first_ = static_cast<int32_t>(tree_.size());
    for (size_t row = 0; row < beam.size(); ++row) Extend(beam[row], guesses, row);
  }

  Draft Finished(int64_t levels) const {
    std::vector<int32_t> order = Likeliest(1);
    order.insert(order.begin(), 0);
    Draft draft;
    draft.tree = tree_.Take(order);
    draft.levels = levels;
    for (int32_t node : order) draft.reach.push_back(std::exp(Value(node)));
    return draft;
  }

 private:
  void Extend(int32_t node, const Guesses& guesses, size_t row) {
    for (int64_t i = 0; i < top_k_; ++i) {
      size_t at = row * static_cast<size_t>(guesses.k) + static_cast<size_t>(i);
      values_.push_back(Value(node) + static_cast<double>(guesses.values[at]));
      tree_.tokens.push_back(guesses.tokens[at]);
      tree_.parents.push_back(node);
    }
  }

  // Nodes from `first` on by falling value, of equals the lower number.
  std::vector<int32_t> Likeliest(int32_t first) const {
    std::vector<int32_t> nodes(values_.size() - static_cast<size_t>(first));
    std::iota(nodes.begin(), nodes.end(), first);
    std::stable_sort(nodes.begin(), nodes.end(), [&](int32_t a, int32_t b) { return Value(a) > Value(b); });
    return nodes;
  }

  int64_t top_k_;
  std::vector<double> values_;  // log-probabilities by node
  Tree tree_;
  int32_t first_ = 1;  // node of the last level
};

}  // namespace

Draft Expand(int32_t root, const Guesses& after, const StepHead& step, const Plan& plan) {
  Growth growth(root, after, plan.top_k);
  std::vector<int32_t> beam = growth.Beam();
  double least = std::log(std::max(plan.floor, 1e-30));
  int64_t levels = 1;
  for (; levels < plan.depth && growth.Value(beam[0]) >= least; ++levels) {
    growth.Grow(beam, step);
    beam = growth.Beam();
  }
  return growth.Finished(levels);
}

}  // namespace minicpm
