#include "ngram.h"

#include <algorithm>
#include <map>
#include <utility>

namespace minicpm {
namespace {

constexpr int64_t kLongestSuffix = 8;               // tokens that are compared
constexpr int64_t kMostPlaces = 4;                  // earlier ones whose continuations make one tree
constexpr int64_t kKindSuffixes[] = {1, 2, 4, 6};  // tokens of the shortest suffix of each kind of draft

// Where the longest repeated suffix ends earlier, ascending, and how long it is.
struct Suffix {
  std::vector<int64_t> ends;
  int64_t length = 0;
};

Suffix LongestSuffix(const std::vector<int32_t>& history) {
  int64_t last = static_cast<int64_t>(history.size()) - 1;
  const int32_t* text = history.data();
  Suffix suffix;
  for (int64_t end = 0; end < last; ++end) {
    if (text[end] == text[last]) suffix.ends.push_back(end);
  }
  suffix.length = suffix.ends.empty() ? 0 : 1;
  while (suffix.length && suffix.length < kLongestSuffix) {
    std::vector<int64_t> longer;
    for (int64_t end : suffix.ends) {
      if (end >= suffix.length && text[end - suffix.length] == text[last - suffix.length]) longer.push_back(end);
    }
    if (longer.empty()) break;
    suffix.ends = std::move(longer);
    ++suffix.length;
  }
  return suffix;
}

// One tree of the texts behind these places; where the text runs out it is taken to repeat with the same period. A node's
// chance is the share of them that go through it.
Draft Merge(const std::vector<int32_t>& history, const std::vector<int64_t>& ends, int64_t depth) {
  Draft draft;
  draft.tree = {{history.back()}, {-1}};
  draft.reach = {static_cast<double>(ends.size())};
  std::map<std::pair<int32_t, int32_t>, int32_t> children;
  for (int64_t end : ends) {
    int64_t period = static_cast<int64_t>(history.size()) - 1 - end;
    int32_t node = 0;
    for (int64_t k = 0; k < depth; ++k) {
      int32_t token = history[static_cast<size_t>(end + 1 + k % period)];
      auto [child, fresh] = children.insert({{node, token}, static_cast<int32_t>(draft.tree.size())});
      if (fresh) {
        draft.tree.tokens.push_back(token);
        draft.tree.parents.push_back(node);
        draft.reach.push_back(0);
      }
      node = child->second;
      ++draft.reach[static_cast<size_t>(node)];
    }
  }
  for (double& chance : draft.reach) chance /= static_cast<double>(ends.size());
  return draft;
}

}  // namespace

std::optional<Draft> NgramDrafter::Propose(const std::vector<int32_t>& history, const Plan& plan) {
  Suffix suffix = LongestSuffix(history);
  if (suffix.ends.empty()) return std::nullopt;
  size_t places = static_cast<size_t>(std::min(plan.top_k, kMostPlaces));
  std::vector<int64_t> latest(suffix.ends.rbegin(), suffix.ends.rend());
  latest.resize(std::min(latest.size(), places));
  Draft draft = Merge(history, latest, plan.depth);
  draft.kind = -1;
  for (int64_t shortest : kKindSuffixes) draft.kind += suffix.length >= shortest;
  return draft;
}

}  // namespace minicpm
