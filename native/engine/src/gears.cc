#include "gears.h"

#include <algorithm>

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

}  // namespace minicpm
