// A library's functions over one sequence: tokens go in, logits come out. Pages of texts before are kept for those that
// begin with the same tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gears.h"
#include "library.h"
#include "pages.h"
#include "prefix_cache.h"
#include "token_tree.h"

namespace minicpm {

// What a draft head is given of tokens: float32 [width] each, valid until the model's next call.
struct Features {
  int64_t width = 0;
  std::vector<const float*> rows;
};

class Model {
 public:
  Model(const Bundle& bundle, int threads, int64_t context, const Gears& gears);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  int64_t size() const { return sequence_.size(); }
  int64_t context() const { return sequence_.context; }
  bool recurrent() const { return sequence_.recurrent; }
  const Sequence& sequence() const { return sequence_; }

  // Makes the text the longest beginning of `ids` that is known; returns its length.
  int64_t Begin(const std::vector<int32_t>& ids);
  // Forgets the tokens from `length` on, of a model with state per sequence all; and the pages of other texts.
  void Truncate(int64_t length);

  // Appends a chunk of tokens in this gear; the last one's logits, float32 [vocabulary], valid until the next call.
  const float* Prefill(const std::vector<int32_t>& ids, bool sparse);
  // Appends one token.
  const float* Decode(int32_t id);
  // Logits after each node of a tree behind the tokens, which stay as they are; valid until the next call.
  std::vector<const float*> Verify(const Tree& tree);
  // Appends a path of the tree that was verified last, its nodes from the root on.
  void Commit(const std::vector<int32_t>& path);

  // Of the tokens, or nodes, of the last call, where the bundle has a draft head.
  const Features& features() const { return features_; }
  void Reserve(int64_t n) { sequence_.Reserve(n); }  // makes room for n more tokens
  const Pools& DraftPools();  // made when first used; a sequence has the same pages in them
  Library& library() { return library_; }

  // What is kept, the text among it, to a file and back. Not of a model with state per sequence.
  void Save(const std::string& path);
  void Resume(const std::string& path);

  const Gears gears;

 private:
  struct Verified {
    Tree tree;
    std::vector<int32_t> places;  // of each node among the rows
  };

  // The rows that a tree's nodes are computed as: the sparse ones last, as they see dense ancestors.
  struct Order {
    std::vector<int32_t> nodes, places;  // the node of each row, and the row of each node
    int64_t dense = 0;                   // rows that are computed densely: the first
    std::vector<int32_t> depths;         // of each row
    std::vector<uint64_t> masks;
  };

  Order OrderOf(const Tree& tree) const;
  void VerifyRows(const Tree& tree, const Order& order, int64_t first, int64_t last, bool sparse);
  void CheckSavable() const;
  int64_t Known(const std::vector<int32_t>& ids);
  void Copy(int32_t page, const std::vector<int32_t>& ids);
  void CopyDrafted(int32_t source, int32_t page, int32_t rows);
  void Forget();
  void Take(Outputs outputs);

  Library library_;
  const std::string manifest_;  // its SHA-256
  PagePool pool_;
  Sequence sequence_;
  PrefixCache cache_;
  Pools pools_;
  std::optional<Pools> draft_pools_;
  std::vector<Outputs> outputs_;  // of the last call
  Features features_;
  std::optional<Verified> verified_;
};

}  // namespace minicpm
