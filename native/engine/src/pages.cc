#include "pages.h"

#include <algorithm>
#include <numeric>

#include "error.h"

namespace minicpm {

PagePool::PagePool(int64_t pages, int64_t page_size)
    : page_size(page_size),
      owners(static_cast<size_t>(pages)),
      kept(owners.size()),
      drafted(owners.size()),
      free_(owners.size()) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int64_t PagePool::available() const {
  int64_t count = static_cast<int64_t>(free_.size());
  for (size_t page = 0; page < owners.size(); ++page) count += kept[page] && owners[page] == 1;
  return count;
}

int32_t PagePool::Take() {
  if (free_.empty() && !reclaim()) {
    Fail(MINICPM_CONTEXT, "the cache is full: all ", size(), " pages (", size() * page_size,
         " tokens) are in use; open the bundle with a larger \"context\"");
  }
  int32_t page = free_.back();
  free_.pop_back();
  owners[static_cast<size_t>(page)] = 1;
  drafted[static_cast<size_t>(page)] = 0;
  return page;
}

void PagePool::Release(int32_t page) {
  if (--owners[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

int64_t Sequence::Room() const {
  int64_t pages = static_cast<int64_t>(table_.size()) + pool_->available();
  return std::min(context, pages * pool_->page_size) - size();
}

void Sequence::Adopt(const std::vector<int32_t>& pages, const std::vector<int32_t>& ids) {
  for (int32_t page : pages) pool_->Share(page);
  table_ = pages;
  tokens_ = ids;
}

std::vector<int32_t> Sequence::Reserve(int64_t n) {
  int64_t length = size() + n;
  if (length > context) {
    Fail(MINICPM_CONTEXT, length, " tokens don't fit the context of ", context,
         "; shorten the prompt or open the bundle with a larger \"context\"");
  }
  size_t before = table_.size();
  try {
    while (static_cast<int64_t>(table_.size()) * pool_->page_size < length) table_.push_back(pool_->Take());
  } catch (...) {
    ReleaseFrom(before);
    throw;
  }
  std::vector<int32_t> slots(static_cast<size_t>(n));
  std::iota(slots.begin(), slots.end(), static_cast<int32_t>(size()));
  return slots;
}

int64_t Sequence::Truncate(int64_t length) {
  length = std::min(length, size());
  if (recurrent && length < size()) length = 0;
  int64_t page_size = pool_->page_size, pages = (length + page_size - 1) / page_size;
  auto last = [&] { return static_cast<size_t>(table_[static_cast<size_t>(pages - 1)]); };
  if (length % page_size && pool_->owners[last()] > 1) length = --pages * page_size;
  if (int32_t rest = static_cast<int32_t>(length % page_size)) {
    // its last row was made of the token after it, too
    pool_->drafted[last()] = std::min(pool_->drafted[last()], rest - 1);
  }
  ReleaseFrom(static_cast<size_t>(pages));
  tokens_.resize(static_cast<size_t>(length));
  return length;
}

void Sequence::ReleaseFrom(size_t pages) {
  for (; table_.size() > pages; table_.pop_back()) pool_->Release(table_.back());  // the lowest is then taken next
}

int64_t CommonPrefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace minicpm
