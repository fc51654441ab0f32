// Which page of the pools holds which tokens, as minicpm_mlc/runtime_py/kv_cache.py has it. No tensor is touched here.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace minicpm {

// Free pages, and how many owners each page has; one with two is a shared beginning.
class PagePool {
 public:
  PagePool(int64_t pages, int64_t page_size);

  int64_t size() const { return static_cast<int64_t>(owners.size()); }
  // Pages that can be taken: the free ones, and those that are only kept.
  int64_t available() const;

  int32_t Take();  // a page with one owner; fails where there is none
  void Share(int32_t page) { ++owners[static_cast<size_t>(page)]; }
  void Release(int32_t page);

  const int64_t page_size;
  std::vector<int32_t> owners;
  std::vector<bool> kept;        // one of the owners keeps it only for what may come
  std::vector<int32_t> drafted;  // rows that a draft head has of its tokens, from the first on
  std::function<bool()> reclaim = [] { return false; };  // gives a page back that is only kept; whether there was one

 private:
  std::vector<int32_t> free_;  // the lowest last: memory never used is never committed by the system
};

// The tokens whose keys and values are there, and the pages that hold them.
class Sequence {
 public:
  // `recurrent`: the model also keeps state of the sequence as a whole, which can't go back.
  Sequence(PagePool* pool, int64_t context, bool recurrent) : context(context), recurrent(recurrent), pool_(pool) {}

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<int32_t>& table() const { return table_; }  // slot s is in page table()[s / page_size]
  PagePool& pool() const { return *pool_; }
  int64_t Room() const;  // how many more tokens it can hold

  // Begins with full pages that have other owners. It must be empty.
  void Adopt(const std::vector<int32_t>& pages, const std::vector<int32_t>& ids);
  // Makes room for n more tokens; returns their slots. Where it fails, all is as it was.
  std::vector<int32_t> Reserve(int64_t n);
  // Records tokens that were computed at reserved slots.
  void Append(const std::vector<int32_t>& ids) { tokens_.insert(tokens_.end(), ids.begin(), ids.end()); }
  // Forgets the tokens from `length` on; returns how many are kept: a shared page that the cut is in is given up whole, a
  // recurrent sequence too.
  int64_t Truncate(int64_t length);

  const int64_t context;
  const bool recurrent;

 private:
  void ReleaseFrom(size_t pages);

  PagePool* pool_;
  std::vector<int32_t> tokens_, table_;
};

// Length of the longest beginning that both have.
int64_t CommonPrefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b);

}  // namespace minicpm
