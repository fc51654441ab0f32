// An EAGLE head over a model's sequence, with a cache of its own that shares the model's page table. As
// minicpm_mlc/runtime_py/draft_model.py.
//
// Its row i pairs the model's features of token i with token i + 1, so that Extend proposes what follows the root, the
// token sampled last. Step goes on from its own hidden states, a tree's depth at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "bundle.h"
#include "expand.h"
#include "model.h"

namespace minicpm {

// What the head proposes after n rows, and the hidden states float32 [n, H] that say so.
struct Proposed {
  Guesses guesses;
  std::vector<float> hidden;
};

class DraftHead {
 public:
  // `window`: how many tokens before the tree the head sees, at least. Fails where the bundle's list of the head's tokens
  // is damaged.
  DraftHead(const Bundle& bundle, Model* model, int64_t window);

  // Forgets the rows from `length` on, and those from the first page on that was exchanged; to be called when the
  // sequence was cut back. Returns the row after the last one.
  int64_t Truncate(int64_t length);
  // Takes over the rows that the pages of the first `length` tokens hold, from whichever text; returns the row after the
  // last one, 0 if there are none.
  int64_t Adopt(int64_t length);

  // Appends the rows of the sequence's last n tokens, whose features float32 [n, width] the model has given. Where rows
  // before them are missing, the head sees nothing before the gap.
  Proposed Extend(int32_t root, std::vector<float> features, int64_t width);
  // Runs n more nodes of a draft tree, numbered in the order of all steps since Extend; a parent of -1: Extend proposed
  // the node. `hidden` are the states that proposed them.
  Proposed Step(const std::vector<int32_t>& ids, const std::vector<float>& hidden, const std::vector<int32_t>& parents);

 private:
  Proposed ProposedOf(const DraftOutputs& outputs) const;
  std::vector<int32_t> Table() const;  // the pages that the head sees; slots are counted from the first of them
  int32_t& Drafted(int64_t number);    // rows that it has of the sequence's page with this number
  void Note(int64_t start, int64_t end);

  Model* model_;
  std::vector<int32_t> ids_;  // the token of each id of the head
  const int64_t window_, chunk_, page_size_;
  int64_t begin_ = 0;            // the first cached row; it begins a page
  int64_t rows_ = 0;             // the row after the last cached one
  int64_t first_ = 0;            // the first row that is seen
  std::vector<uint64_t> masks_;  // of the draft tree's nodes
};

}  // namespace minicpm
