#include "model.h"

#include <algorithm>
#include <numeric>

#include "session.h"

namespace minicpm {

Gears::Gears(const Manifest& manifest, const std::string& attention)
    : attention_(attention), sparse_(manifest.sparse), block_size_(manifest.page_size) {
  if (attention != "auto" && attention != "dense" && attention != "sparse") {
    Fail(MINICPM_REQUEST, "attention is ", Json::Quote(attention), "; choose auto, dense or sparse");
  }
  if (attention == "sparse" && !sparse_) {
    Fail(MINICPM_REQUEST, manifest.name, " has no sparse attention in this bundle; use \"attention\": \"auto\"");
  }
}

bool Gears::Sparse(int64_t length) const {
  if (attention_ != "auto") return attention_ == "sparse";
  return sparse_ && length >= sparse_->dense_len;
}

Gears::Blocks Gears::At(int64_t length) const {
  int64_t present = (length + block_size_ - 1) / block_size_;
  return {Sparse(length) ? std::min(sparse_->budget, present) : present, present};
}

Model::Model(const Bundle& bundle, int threads, int64_t context, const Gears& gears)
    : context(context),
      gears(gears),
      library_(bundle, threads),
      manifest_(bundle.manifest.sha256),
      recurrent_(bundle.manifest.recurrent()),
      page_size_(bundle.manifest.page_size),
      pools_(library_.NewPools((context + page_size_ - 1) / page_size_)) {}

int64_t Model::Reuse(const std::vector<int32_t>& ids) {
  auto [mine, theirs] = std::mismatch(tokens_.begin(), tokens_.end(), ids.begin(), ids.end());
  Truncate(mine - tokens_.begin());
  return size();
}

void Model::Truncate(int64_t length) {
  if (length >= size()) return;
  tokens_.resize(recurrent_ ? 0 : static_cast<size_t>(length));
}

const float* Model::Prefill(const std::vector<int32_t>& ids, bool sparse) {
  int64_t n = static_cast<int64_t>(ids.size());
  std::vector<int32_t> slots = Slots(n);
  outputs_.reset();  // its memory is taken for the next results
  outputs_ = library_.Prefill(ids, slots, Table(size() + n), {static_cast<int32_t>(n - 1)}, pools_, sparse);
  Append(ids);
  return outputs_->Row(0);
}

const float* Model::Decode(int32_t id) {
  std::vector<int32_t> slots = Slots(1);
  outputs_.reset();
  outputs_ = library_.Decode(id, slots[0], Table(size() + 1), pools_, gears.Sparse(size() + 1));
  Append({id});
  return outputs_->Row(0);
}

void Model::CheckSavable() const {
  if (recurrent_) Fail(MINICPM_REQUEST, "the model keeps state per sequence, which can't be saved");
}

void Model::Save(const std::string& path) const {
  CheckSavable();
  SaveSession(path, manifest_, tokens_, page_size_, pools_);
}

void Model::Resume(const std::string& path) {
  CheckSavable();
  tokens_ = LoadSession(path, manifest_, page_size_, context, pools_);
}

std::vector<int32_t> Model::Slots(int64_t n) const {
  if (size() + n > context) {
    Fail(MINICPM_CONTEXT, size() + n, " tokens don't fit the context of ", context,
         "; shorten the prompt or open the bundle with a larger \"context\"");
  }
  std::vector<int32_t> slots(static_cast<size_t>(n));
  std::iota(slots.begin(), slots.end(), static_cast<int32_t>(size()));
  return slots;
}

std::vector<int32_t> Model::Table(int64_t length) const {
  std::vector<int32_t> pages(static_cast<size_t>((length + page_size_ - 1) / page_size_));
  std::iota(pages.begin(), pages.end(), 0);
  return pages;
}

void Model::Append(const std::vector<int32_t>& ids) { tokens_.insert(tokens_.end(), ids.begin(), ids.end()); }

}  // namespace minicpm
