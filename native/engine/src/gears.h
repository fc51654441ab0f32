// Which gear a call takes: dense while a sequence is short, sparse from the model's dense_len tokens on, unless forced.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "manifest.h"

namespace minicpm {

class Gears {
 public:
  // `attention`: auto, dense or sparse; fails for any other, and for sparse in a bundle that has none.
  Gears(const Manifest& manifest, const std::string& attention);

  // Whether a call that brings the sequence to `length` tokens reads sparsely.
  bool Sparse(int64_t length) const;

  // Blocks that the last of `length` tokens reads, of those that there are.
  struct Blocks {
    int64_t read, present;
  };
  Blocks At(int64_t length) const;

 private:
  std::string attention_;
  std::optional<minicpm::Sparse> sparse_;
  int64_t block_size_;
};

}  // namespace minicpm
