#include "draft_head.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "files.h"
#include "npy.h"

namespace minicpm {
namespace {

constexpr const char* kDraftIds = "draft-ids.npy";

// The token of each id of the head's vocabulary, in a file as NumPy writes it.
std::vector<int32_t> ReadIds(const Bundle& bundle) {
  int64_t count = bundle.manifest.draft.value().vocab;
  std::string path = bundle.File(kDraftIds), text = ReadSmall(path).value_or("");
  std::optional<Npy> array = Npy::Of(text);
  if (!array || array->kind != "i4" || array->shape != std::vector<int64_t>{count}) {
    Fail(MINICPM_BUNDLE, path, " doesn't hold ", count, " token ids, int32; ", kRepair);
  }
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::memcpy(ids.data(), array->data.data(), array->data.size());
  for (int32_t id : ids) {
    if (id >= 0 && id < bundle.manifest.vocab_size) continue;
    Fail(MINICPM_BUNDLE, path, " holds the id ", id, ", expected 0 to ", bundle.manifest.vocab_size - 1, "; ", kRepair);
  }
  return ids;
}

}  // namespace

DraftHead::DraftHead(const Bundle& bundle, Model* model, int64_t window)
    : model_(model),
      ids_(ReadIds(bundle)),
      window_(window),
      chunk_(bundle.manifest.prefill_chunk),
      page_size_(bundle.manifest.page_size) {}

int32_t& DraftHead::Drafted(int64_t number) {
  int32_t page = model_->sequence().table()[static_cast<size_t>(number)];
  return model_->sequence().pool().drafted[static_cast<size_t>(page)];
}

int64_t DraftHead::Truncate(int64_t length) {
  rows_ = std::min(rows_, length);
  for (int64_t number = begin_ / page_size_; number * page_size_ < rows_; ++number) {
    int64_t held = number * page_size_ + Drafted(number);
    if (held >= std::min(rows_, (number + 1) * page_size_)) continue;
    rows_ = held;
    break;
  }
  return rows_;
}

int64_t DraftHead::Adopt(int64_t length) {
  int64_t full = length / page_size_, first = full;
  while (first && Drafted(first - 1) == page_size_) --first;
  int64_t rest = length % page_size_ ? std::min<int64_t>(Drafted(full), length % page_size_ - 1) : 0;
  if (first == full && rest <= 0) return 0;
  begin_ = first * page_size_;
  rows_ = full * page_size_ + std::max<int64_t>(rest, 0);
  return rows_;
}

Proposed DraftHead::Extend(int32_t root, std::vector<float> features, int64_t width) {
  int64_t end = model_->size(), start = end - static_cast<int64_t>(features.size()) / width;
  int64_t seen = std::max<int64_t>(0, end - window_) / page_size_ * page_size_;
  if (start < seen) {
    features.erase(features.begin(), features.begin() + (seen - start) * width);
    start = begin_ = seen;
  } else if (start < begin_ || start > rows_) {
    begin_ = start / page_size_ * page_size_;  // a gap: rows of no features fill up its last page
    features.insert(features.begin(), static_cast<size_t>((start - begin_) * width), 0.0f);
    start = begin_;
  }
  first_ = std::max(begin_, seen);
  rows_ = end;
  masks_.clear();
  std::vector<int32_t> ids(model_->sequence().tokens().begin() + start + 1, model_->sequence().tokens().end());
  ids.push_back(root);
  Note(start, end);
  Proposed proposed;
  for (int64_t at = 0; at < end - start; at += chunk_) {
    int64_t n = std::min(chunk_, end - start - at);
    std::vector<int32_t> part(ids.begin() + at, ids.begin() + at + n), slots(static_cast<size_t>(n));
    std::vector<float> rows(features.begin() + at * width, features.begin() + (at + n) * width);
    std::iota(slots.begin(), slots.end(), static_cast<int32_t>(start + at - first_));
    proposed = ProposedOf(model_->library().DraftExtend(part, rows, static_cast<int32_t>(start + at), slots, Table(),
                                                        model_->DraftPools()));
  }
  return proposed;
}

// The pages will hold the rows from one to another.
void DraftHead::Note(int64_t start, int64_t end) {
  for (int64_t number = start / page_size_; number * page_size_ < end; ++number) {
    Drafted(number) = static_cast<int32_t>(std::min(page_size_, end - number * page_size_));
  }
}

Proposed DraftHead::Step(const std::vector<int32_t>& ids, const std::vector<float>& hidden,
                         const std::vector<int32_t>& parents) {
  TreeShape shape(parents, masks_);
  int32_t base = static_cast<int32_t>(model_->size()), old = static_cast<int32_t>(masks_.size());
  masks_.insert(masks_.end(), shape.masks.begin(), shape.masks.end());
  model_->Reserve(static_cast<int64_t>(masks_.size()));
  TreeRows rows{ids, {}, {}, MaskWords(shape.masks), base - static_cast<int32_t>(first_)};
  for (size_t i = 0; i < ids.size(); ++i) {
    rows.positions.push_back(base + shape.depths[i]);
    rows.slots.push_back(rows.base + old + static_cast<int32_t>(i));
  }
  return ProposedOf(model_->library().DraftStep(rows, hidden, Table(), model_->DraftPools()));
}

Proposed DraftHead::ProposedOf(const DraftOutputs& outputs) const {
  Proposed proposed;
  proposed.guesses.k = outputs.ids.shape()[1];
  const int32_t* ids = static_cast<const int32_t*>(outputs.ids.data_ptr());
  const float* values = static_cast<const float*>(outputs.values.data_ptr());
  const float* hidden = static_cast<const float*>(outputs.hidden.data_ptr());
  int64_t n = outputs.ids.shape()[0] * proposed.guesses.k;
  for (int64_t i = 0; i < n; ++i) proposed.guesses.tokens.push_back(ids_.at(static_cast<size_t>(ids[i])));
  proposed.guesses.values.assign(values, values + n);
  proposed.hidden.assign(hidden, hidden + outputs.hidden.shape()[0] * outputs.hidden.shape()[1]);
  return proposed;
}

std::vector<int32_t> DraftHead::Table() const {
  const std::vector<int32_t>& table = model_->sequence().table();
  return {table.begin() + first_ / page_size_, table.end()};
}

}  // namespace minicpm
