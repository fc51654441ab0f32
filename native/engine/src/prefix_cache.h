// Pages that are kept after their sequence went on or ended, for texts that begin with the same tokens: a tree of pages,
// each behind the one before it, the least recently used given back first. As minicpm_mlc/runtime_py/prefix_cache.py.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "pages.h"

namespace minicpm {

// A page that is kept, for who stores it: its tokens, and the place of the page before it in the list; -1: none.
struct KeptPage {
  int32_t parent;
  std::vector<int32_t> tokens;
  int32_t page;
};

class PrefixCache {
 public:
  // What is kept of a text: its full pages, and the first `rows` tokens of the page `tail`, which goes on differently.
  struct Found {
    std::vector<int32_t> pages;
    int32_t tail = -1;
    int64_t rows = 0;
  };

  explicit PrefixCache(PagePool* pool);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Keeps a sequence's full pages; with `tail` also its last one, into which the sequence must not write any more.
  void Keep(const Sequence& sequence, bool tail);
  // The longest beginning of a text that is kept.
  Found Find(const std::vector<int32_t>& ids);

  // The pages that it keeps, each behind the one before it.
  std::vector<KeptPage> All() const;
  // Takes over pages that have one owner, listed as by All.
  void Restore(const std::vector<KeptPage>& pages);

 private:
  struct Node {
    Node* parent = nullptr;
    std::vector<int32_t> tokens;  // fewer than fill the page at the end of a text
    int32_t page = -1;
    std::map<std::vector<int32_t>, std::unique_ptr<Node>> children;
    std::list<Node*>::iterator place;  // in used_
  };

  Node* Add(Node* parent, const std::vector<int32_t>& tokens, int32_t page);
  bool Replace(Node* node, int32_t page);
  bool Evict();
  void Remove(Node* node);
  void Own(int32_t page);
  void Disown(int32_t page);
  void Touch(Node* node);
  bool IsAlone(const Node& node) const { return pool_->owners[static_cast<size_t>(node.page)] == 1; }

  PagePool* pool_;
  Node root_;
  std::list<Node*> used_;  // the least recently used first
};

}  // namespace minicpm
