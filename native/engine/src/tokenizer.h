// tokenizer.json: text to token ids and back, as the `tokenizers` library does it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "added_tokens.h"
#include "bpe.h"
#include "normalizer.h"
#include "splitter.h"

namespace minicpm {

class Tokenizer {
 public:
  // Fails for what this engine can't read, naming it.
  Tokenizer(const Json& json, int64_t vocab_size);

  // Token ids of a text; none is added. `plain`: the texts of special tokens are only text.
  std::vector<int32_t> Encode(const std::string& text, bool plain = false) const;

  // Ids of text that goes on from other text: without the space that some tokenizers put before a first word.
  std::vector<int32_t> EncodeMiddle(const std::string& text) const;

  // The bytes that this token adds inside a text, perhaps a part of a character; none for a special token.
  std::string BytesOf(int32_t id) const;

  // Special tokens give no text, think tags do, whatever the file calls them: id -> text of those that don't.
  const std::map<int32_t, std::string>& hidden() const { return hidden_; }
  // Text of every special token -> id.
  const std::map<std::string, int32_t>& control() const { return control_; }
  // Whether a text's first space is dropped when tokens become text, as SentencePiece does.
  bool strips_first_space() const { return strips_first_space_; }

 private:
  std::vector<Symbol> Symbols(const std::string& text, bool plain) const;
  void AppendWords(const std::string& text, bool plain, bool first, std::vector<Symbol>* symbols) const;
  void ReadDecoder(const Json& json);

  Normalizer normalizer_;
  Splitter splitter_;
  Bpe bpe_;
  AddedTokens added_;
  std::map<int32_t, std::string> texts_, hidden_;  // of added tokens
  std::map<std::string, int32_t> control_;
  bool strips_first_space_ = false, decodes_bytes_ = false;
};

}  // namespace minicpm
