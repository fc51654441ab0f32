// Text in UTF-8: characters, white space as Python's str has it, and what is not UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace minicpm {

inline constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// The character that begins at `at` of valid UTF-8, and how many bytes it has.
struct Character {
  uint32_t code;
  size_t bytes;
};
Character CharacterAt(std::string_view text, size_t at);
void AppendCharacter(uint32_t code, std::string* text);

bool IsSpace(uint32_t code);  // str.isspace
std::string_view StripLeft(std::string_view text);
std::string_view StripRight(std::string_view text);
std::string_view Strip(std::string_view text);

bool StartsWith(std::string_view text, std::string_view with);
bool EndsWith(std::string_view text, std::string_view with);
std::string Replaced(std::string_view text, std::string_view what, std::string_view with);
std::string Joined(const std::vector<std::string>& parts, const std::string& between);

// Length of the longest end of text that begins `stop` without completing it.
size_t Overlap(std::string_view text, std::string_view stop);

// Makes whole characters of bytes as they come; U+FFFD for each longest part of one that is none, as Python does.
class Utf8Decoder {
 public:
  std::string Feed(std::string_view bytes);
  std::string Finish();                               // U+FFFD for a character cut in half
  bool at_border() const { return held_.empty(); }  // whether the bytes so far end with a whole character

 private:
  std::string held_;
};

// Text from outside, with U+FFFD for what is not UTF-8.
std::string WholeCharacters(std::string_view bytes);

// The same of an error that may quote a file: without zeros, and a long one without its middle.
std::string Sentence(std::string_view bytes);

}  // namespace minicpm
