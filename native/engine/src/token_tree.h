// A token tree: the last sampled token as root, and guesses of what comes after it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace minicpm {

inline constexpr int64_t kMostNodes = 64;  // of a tree that a library verifies at once
inline constexpr int64_t kFreeRows = 16;   // that take about as long as one row

// Node 0 is the root, with parent -1. A parent comes before its children, which differ in their tokens.
struct Tree {
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  // The child with this token; nothing where there is none.
  std::optional<int32_t> Child(int32_t node, int32_t token) const;
  // Steps from the root.
  std::vector<int32_t> Depths() const;
  // The tree of these nodes alone, numbered in this order: the root first, every parent before its children.
  Tree Take(const std::vector<int32_t>& nodes) const;

  std::vector<int32_t> tokens, parents;
};

// A tree and how likely its drafter holds each node to be reached: the root has 1, a child at most its parent's.
struct Draft {
  // Seconds of reading that no level is charged for; few rows take about as long as one and count as a level.
  double Reading() const { return read_tokens > kFreeRows ? read_seconds : 0; }
  // The draft cut to its likeliest nodes by `chances`, the likeliest first, of equals the lower number.
  Draft Likeliest(int64_t size, const std::vector<double>& chances) const;
  Draft Likeliest(int64_t size) const { return Likeliest(size, reach); }

  Tree tree;
  std::vector<double> reach;
  int kind = 0;                                  // of one drafter's drafts, whose chances differ
  int64_t levels = 1;                            // that were drafted, more than a cut may have left
  int64_t read_tokens = 0;                       // of the text, which the drafter had not read yet
  double read_seconds = 0;                       // what reading them took
};

// Depths and ancestor masks of nodes that are added behind those with the masks `first`; a parent of -1 is a root. Bit j
// of a node's mask is set if j is that node or one of its ancestors.
struct TreeShape {
  TreeShape(const std::vector<int32_t>& parents, const std::vector<uint64_t>& first);
  std::vector<int32_t> depths;
  std::vector<uint64_t> masks;
};

// Masks as int32 [n, 2], the low word first.
std::vector<int32_t> MaskWords(const std::vector<uint64_t>& masks);

}  // namespace minicpm
