// Tokens that are recognised as a whole in a text, before anything else is made of it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace minicpm {

struct AddedToken {
  int32_t id;
  std::string content;
  std::string pattern;  // what stands for it in the text that is looked through
  bool special, normalized, lstrip, rstrip;
};

// A part of a text: a token, or text between tokens (id -1).
struct Part {
  int32_t id;
  std::string_view text;
};

class AddedTokens {
 public:
  // Of tokenizer.json's added_tokens; fails for one that is only a token as a word of its own. `normalize` makes of a
  // normalized token's text what becomes of it in a text.
  AddedTokens(const Json& list, const std::function<std::string(const std::string&)>& normalize);

  // Cuts a text at the tokens with this `normalized`, the leftmost first, of those the longest.
  // `plain`: the texts of special tokens are only text.
  std::vector<Part> Split(std::string_view text, bool normalized, bool plain) const;

  const std::vector<AddedToken>& all() const { return all_; }

 private:
  const AddedToken* Match(std::string_view text, size_t at, bool normalized) const;

  std::vector<AddedToken> all_;
  std::map<char, std::vector<const AddedToken*>> by_first_;  // byte, the longest first
};

}  // namespace minicpm
