#include "token_tree.h"

#include <algorithm>
#include <numeric>

#include "error.h"

namespace minicpm {

std::optional<int32_t> Tree::Child(int32_t node, int32_t token) const {
  for (size_t child = static_cast<size_t>(node) + 1; child < tokens.size(); ++child) {
    if (parents[child] == node && tokens[child] == token) return static_cast<int32_t>(child);
  }
  return std::nullopt;
}

std::vector<int32_t> Tree::Depths() const {
  std::vector<int32_t> depths(tokens.size());
  for (size_t node = 1; node < depths.size(); ++node) depths[node] = depths[static_cast<size_t>(parents[node])] + 1;
  return depths;
}

Tree Tree::Take(const std::vector<int32_t>& nodes) const {
  std::vector<int32_t> places(tokens.size(), -1);
  Tree taken;
  for (int32_t node : nodes) {
    places[static_cast<size_t>(node)] = static_cast<int32_t>(taken.size());
    int32_t parent = parents[static_cast<size_t>(node)];
    taken.tokens.push_back(tokens[static_cast<size_t>(node)]);
    taken.parents.push_back(parent < 0 ? -1 : places[static_cast<size_t>(parent)]);
  }
  return taken;
}

Draft Draft::Likeliest(int64_t size, const std::vector<double>& chances) const {
  std::vector<int32_t> nodes(static_cast<size_t>(tree.size()));
  std::iota(nodes.begin(), nodes.end(), 0);
  auto chance = [&](int32_t node) { return chances[static_cast<size_t>(node)]; };
  std::stable_sort(nodes.begin(), nodes.end(), [&](int32_t a, int32_t b) { return chance(a) > chance(b); });
  nodes.resize(static_cast<size_t>(std::min(size, tree.size())));
  Draft cut = *this;
  cut.tree = tree.Take(nodes);
  cut.reach.clear();
  for (int32_t node : nodes) cut.reach.push_back(reach[static_cast<size_t>(node)]);
  return cut;
}

TreeShape::TreeShape(const std::vector<int32_t>& parents, const std::vector<uint64_t>& first) {
  std::vector<uint64_t> all = first;
  for (int32_t parent : parents) {
    if (all.size() >= kMostNodes) Fail(MINICPM_FAILED, "a token tree of more than ", kMostNodes, " nodes");
    uint64_t above = parent < 0 ? 0 : all[static_cast<size_t>(parent)];
    all.push_back(above | uint64_t{1} << all.size());
    masks.push_back(all.back());
    depths.push_back(__builtin_popcountll(above));
  }
}

std::vector<int32_t> MaskWords(const std::vector<uint64_t>& masks) {
  std::vector<int32_t> words;
  for (uint64_t mask : masks) {
    words.push_back(static_cast<int32_t>(mask));
    words.push_back(static_cast<int32_t>(mask >> 32));
  }
  return words;
}

}  // namespace minicpm
