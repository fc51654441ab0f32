// A library's functions over one sequence: tokens go in, logits come out. Its pages lie in their order in the pools.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "library.h"

namespace minicpm {

// Which gear a call takes: dense while a sequence is short, sparse from the model's dense_len tokens on, unless forced.
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

class Model {
 public:
  Model(const Bundle& bundle, int threads, int64_t context, const Gears& gears);

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  const std::vector<int32_t>& tokens() const { return tokens_; }

  // Keeps the longest common beginning with `ids`; returns its length.
  int64_t Reuse(const std::vector<int32_t>& ids);
  // Forgets the tokens from `length` on; of a model with state per sequence, which can't go back, all.
  void Truncate(int64_t length);

  // Appends a chunk of tokens in this gear; the last one's logits, float32 [vocabulary], valid until the next call.
  const float* Prefill(const std::vector<int32_t>& ids, bool sparse);
  // Appends one token.
  const float* Decode(int32_t id);

  // The tokens and what was computed of them, to a file and back. Not of a model with state per sequence.
  void Save(const std::string& path) const;
  void Resume(const std::string& path);

  const int64_t context;
  const Gears gears;

 private:
  void CheckSavable() const;
  std::vector<int32_t> Slots(int64_t n) const;
  std::vector<int32_t> Table(int64_t length) const;
  void Append(const std::vector<int32_t>& ids);

  Library library_;
  const std::string manifest_;  // its SHA-256
  const bool recurrent_;
  const int64_t page_size_;
  Pools pools_;
  std::vector<int32_t> tokens_;
  std::optional<Outputs> outputs_;  // of the last call
};

}  // namespace minicpm
