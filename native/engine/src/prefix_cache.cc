#include "prefix_cache.h"

#include <algorithm>

namespace minicpm {
namespace {

// The tokens of a text's page with this number.
std::vector<int32_t> PageOf(const std::vector<int32_t>& ids, size_t number, int64_t page_size) {
  size_t size = static_cast<size_t>(page_size);
  auto begin = ids.begin() + static_cast<ptrdiff_t>(std::min(ids.size(), number * size));
  auto end = ids.begin() + static_cast<ptrdiff_t>(std::min(ids.size(), (number + 1) * size));
  return {begin, end};
}

}  // namespace

PrefixCache::PrefixCache(PagePool* pool) : pool_(pool) {
  pool->reclaim = [this] { return Evict(); };
}

void PrefixCache::Keep(const Sequence& sequence, bool tail) {
  Node* path = &root_;
  size_t number = 0;
  for (int32_t page : sequence.table()) {
    std::vector<int32_t> tokens = PageOf(sequence.tokens(), number++, pool_->page_size);
    bool full = static_cast<int64_t>(tokens.size()) == pool_->page_size;
    if (tokens.empty() || (!full && !tail)) break;
    auto child = path->children.find(tokens);
    if (child == path->children.end()) {
      path = Add(path, tokens, page);
      continue;
    }
    Node* node = child->second.get();
    if (node->page != page && !Replace(node, page)) break;
    path = node;
  }
  Touch(path);
}

PrefixCache::Found PrefixCache::Find(const std::vector<int32_t>& ids) {
  Node* node = &root_;
  Found found;
  std::vector<int32_t> rest = PageOf(ids, 0, pool_->page_size);
  while (static_cast<int64_t>(rest.size()) == pool_->page_size) {
    auto child = node->children.find(rest);
    if (child == node->children.end()) break;
    node = child->second.get();
    found.pages.push_back(node->page);
    rest = PageOf(ids, found.pages.size(), pool_->page_size);
  }
  Node* best = node;
  for (const auto& [tokens, child] : node->children) {
    int64_t rows = CommonPrefix(tokens, rest);
    if (rows <= found.rows) continue;
    found.rows = rows;
    best = child.get();
  }
  found.tail = best->page;
  Touch(best);
  return found;
}

std::vector<KeptPage> PrefixCache::All() const {
  std::vector<KeptPage> all;
  std::vector<std::pair<const Node*, int32_t>> waiting = {{&root_, -1}};  // a node, and its place in the list
  while (!waiting.empty()) {
    auto [parent, place] = waiting.back();
    waiting.pop_back();
    for (const auto& [tokens, child] : parent->children) {
      waiting.push_back({child.get(), static_cast<int32_t>(all.size())});
      all.push_back({place, tokens, child->page});
    }
  }
  return all;
}

void PrefixCache::Restore(const std::vector<KeptPage>& pages) {
  std::vector<Node*> nodes;
  for (const KeptPage& kept : pages) {
    Node* parent = kept.parent >= 0 ? nodes[static_cast<size_t>(kept.parent)] : &root_;
    auto same = parent->children.find(kept.tokens);
    nodes.push_back(same == parent->children.end() ? Add(parent, kept.tokens, kept.page) : same->second.get());
    pool_->Release(kept.page);  // the tree has an owner's part of its own
  }
}

bool PrefixCache::Evict() {
  for (Node* node : used_) {
    if (!node->children.empty() || !IsAlone(*node)) continue;
    Remove(node);
    return true;
  }
  return false;
}

PrefixCache::Node* PrefixCache::Add(Node* parent, const std::vector<int32_t>& tokens, int32_t page) {
  std::vector<Node*> held;  // shorter pages whose tokens the new one holds too
  for (const auto& [part, child] : parent->children) {
    bool begins = part.size() < tokens.size() && std::equal(part.begin(), part.end(), tokens.begin());
    if (begins && IsAlone(*child)) held.push_back(child.get());
  }
  for (Node* node : held) Remove(node);
  std::unique_ptr<Node>& node = parent->children[tokens];
  node = std::make_unique<Node>();
  node->parent = parent;
  node->tokens = tokens;
  node->page = page;
  node->place = used_.insert(used_.end(), node.get());
  Own(page);
  return node.get();
}

// Keeps another page of the same tokens, so that whoever has a page has all before it.
bool PrefixCache::Replace(Node* node, int32_t page) {
  if (!IsAlone(*node)) return false;
  Disown(node->page);
  node->page = page;
  Own(page);
  return true;
}

void PrefixCache::Remove(Node* node) {
  used_.erase(node->place);
  Disown(node->page);
  node->parent->children.erase(std::vector<int32_t>(node->tokens));
}

void PrefixCache::Own(int32_t page) {
  pool_->Share(page);
  pool_->kept[static_cast<size_t>(page)] = true;
}

void PrefixCache::Disown(int32_t page) {
  pool_->kept[static_cast<size_t>(page)] = false;
  pool_->Release(page);
}

// It and all before it were used now; those behind go first.
void PrefixCache::Touch(Node* node) {
  for (; node->parent; node = node->parent) used_.splice(used_.end(), used_, node->place);
}

}  // namespace minicpm
