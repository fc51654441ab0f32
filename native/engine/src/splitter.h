// How a text is cut into words, which tokens don't cross: tokenizer.json's pre_tokenizer.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace minicpm {

class Splitter {
 public:
  // Fails for a kind, or a regular expression, that this engine doesn't know.
  explicit Splitter(const std::optional<Json>& json);

  // The words as their characters are looked up. `first`: whether the text begins what is encoded.
  std::vector<std::string> operator()(const std::string& text, bool first) const;

  bool byte_level() const { return byte_level_; }

 private:
  enum class Kind { kGpt2, kCl100k, kQwen2, kDigits, kDigitRuns };

  void Read(const Json& step);
  void ReadMetaspace(const Json& step);
  std::vector<std::string_view> Pieces(std::string_view text) const;
  std::string MarkSpaces(std::string_view piece, bool first) const;

  std::vector<Kind> steps_;
  bool byte_level_ = false, add_prefix_space_ = false;
  bool metaspace_ = false, splits_at_spaces_ = false;
  std::string prepend_scheme_ = "never";
  std::string replacement_;
};

// GPT-2's character for each byte: printable Latin-1 stands for itself, the others for U+0100 and up.
const std::vector<std::string>& ByteAlphabet();

}  // namespace minicpm
