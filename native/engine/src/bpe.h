// Byte-pair encoding as tokenizer.json describes it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.h"

namespace minicpm {

// A token id that the model lacks.
[[noreturn]] void FailForeign(int64_t id, int64_t vocab_size);

// A token, and how many bytes of the word it stands for.
struct Symbol {
  int32_t id;
  size_t bytes;
};

class Bpe {
 public:
  // Of tokenizer.json's model; fails for one of another kind, or with settings that this engine doesn't know.
  Bpe(const Json& model, int64_t vocab_size);

  // The tokens of a word: characters, of which the pairs that were learned first are joined first.
  std::vector<Symbol> Encode(std::string_view word) const;

  const std::string* TextOf(int32_t id) const;  // null for an id that it lacks
  int32_t IdOf(const std::string& text) const;  // -1 where there is none

 private:
  struct Merge {
    int32_t rank, id;
  };

  void ReadMerges(const Json& merges);
  std::vector<Symbol> Characters(std::string_view word) const;
  bool AppendBytes(std::string_view character, std::vector<Symbol>* symbols) const;
  void Join(std::vector<Symbol>* symbols) const;
  const Merge* Find(int32_t left, int32_t right) const;

  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> texts_;
  std::vector<bool> known_;  // ids that have a text
  std::unordered_map<uint64_t, Merge> merges_;
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

}  // namespace minicpm
