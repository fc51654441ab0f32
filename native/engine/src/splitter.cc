#include "splitter.h"

#include <algorithm>

#include "text.h"
#include "unicode.h"

namespace minicpm {
namespace {

// The regular expressions of GPT-2's, Llama 3's and Qwen 2's tokenizers.
constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kCl100k =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

bool Flag(const Json& step, const char* name, bool otherwise) {
  std::optional<Json> flag = step.Find(name);
  return flag ? flag->Bool() : otherwise;
}

// Looks along a text, a character at a time.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool ended() const { return at >= text_.size(); }
  uint32_t Code(size_t place) const { return place < text_.size() ? CharacterAt(text_, place).code : 0; }
  size_t Next(size_t place) const { return place + CharacterAt(text_, place).bytes; }
  bool Is(size_t place, bool (*kind)(uint32_t)) const { return place < text_.size() && kind(Code(place)); }
  // Where a run of at most `most` such characters ends.
  size_t Run(size_t place, bool (*kind)(uint32_t), size_t most = SIZE_MAX) const {
    for (; most > 0 && Is(place, kind); --most) place = Next(place);
    return place;
  }
  std::string_view Text(size_t from, size_t to) const { return text_.substr(from, to - from); }
  std::string_view rest() const { return text_.substr(at); }

  size_t at = 0;

 private:
  std::string_view text_;
};

bool IsOther(uint32_t code) { return !IsWhite(code) && !IsLetter(code) && !IsNumber(code); }
bool IsLineEnd(uint32_t code) { return code == '\r' || code == '\n'; }
bool IsPrefix(uint32_t code) { return !IsLineEnd(code) && !IsLetter(code) && !IsNumber(code); }

// The end of 's, 't, 're and so on at the reader's place; the place itself where there is none.
size_t Contraction(const Reader& reader, bool any_case) {
  for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (reader.rest().size() < ending.size()) continue;
    bool same = true;
    for (size_t i = 0; i < ending.size(); ++i) {
      char c = reader.rest()[i];
      if (any_case && c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
      same = same && c == ending[i];
    }
    if (same) return reader.at + ending.size();
    // the long s is an s to a regular expression that ignores case
    if (any_case && ending == "'s" && StartsWith(reader.rest(), "'\xC5\xBF")) return reader.at + 3;
  }
  return reader.at;
}

// \s+(?!\S)|\s+: all but the last of a run, unless that is the only one or the text ends.
size_t WhiteRun(const Reader& reader) {
  size_t last = reader.at, end = reader.at;
  while (reader.Is(end, IsWhite)) {
    last = end;
    end = reader.Next(end);
  }
  bool text_ends = reader.Text(end, end + 1).empty();
  return text_ends || last == reader.at ? end : last;
}

size_t Gpt2End(const Reader& reader) {
  size_t end = Contraction(reader, false);
  if (end > reader.at) return end;
  size_t start = reader.Code(reader.at) == ' ' ? reader.at + 1 : reader.at;
  for (auto kind : {IsLetter, IsNumber, IsOther}) {
    end = reader.Run(start, kind);
    if (end > start) return end;
  }
  return WhiteRun(reader);
}

// \s*[\r\n]+: white space up to the last line end of its run; the place itself where it has none.
size_t LineEnds(const Reader& reader) {
  size_t found = reader.at;
  for (size_t end = reader.at; reader.Is(end, IsWhite);) {
    bool line_end = IsLineEnd(reader.Code(end));
    end = reader.Next(end);
    if (line_end) found = end;
  }
  return found;
}

size_t Cl100kEnd(const Reader& reader, size_t digits) {
  size_t end = Contraction(reader, true);
  if (end > reader.at) return end;
  size_t start = reader.Is(reader.at, IsPrefix) ? reader.Next(reader.at) : reader.at;
  end = reader.Run(start, IsLetter);
  if (end > start) return end;
  end = reader.Run(reader.at, IsNumber, digits);
  if (end > reader.at) return end;
  start = reader.Code(reader.at) == ' ' ? reader.at + 1 : reader.at;
  end = reader.Run(start, IsOther);
  if (end > start) return reader.Run(end, IsLineEnd);
  end = LineEnds(reader);
  return end > reader.at ? end : WhiteRun(reader);
}

std::string InAlphabet(std::string_view bytes) {
  std::string text;
  for (char byte : bytes) text += ByteAlphabet()[static_cast<uint8_t>(byte)];
  return text;
}

size_t DigitsEnd(const Reader& reader, size_t most) {
  if (reader.Is(reader.at, IsNumber)) return reader.Run(reader.at, IsNumber, most);
  return reader.Run(reader.at, [](uint32_t code) { return !IsNumber(code); });
}

}  // namespace

const std::vector<std::string>& ByteAlphabet() {
  static const std::vector<std::string> alphabet = [] {
    std::vector<std::string> made(256);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      AppendCharacter(itself ? byte : next++, &made[byte]);
    }
    return made;
  }();
  return alphabet;
}

Splitter::Splitter(const std::optional<Json>& json) {
  if (json) Read(*json);
}

void Splitter::Read(const Json& step) {
  std::string type = step.At("type").Text();
  if (type == "Sequence") {
    for (const Json& inner : step.At("pretokenizers").List()) Read(inner);
  } else if (byte_level_ || metaspace_) {
    step.Refuse("nothing behind ByteLevel or Metaspace");
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    add_prefix_space_ = Flag(step, "add_prefix_space", true);
    if (Flag(step, "use_regex", true)) steps_.push_back(Kind::kGpt2);
    if (add_prefix_space_ && steps_.size() > 1) step.Refuse("add_prefix_space false behind other steps");
  } else if (type == "Digits") {
    steps_.push_back(Flag(step, "individual_digits", false) ? Kind::kDigits : Kind::kDigitRuns);
  } else if (type == "Metaspace") {
    ReadMetaspace(step);
  } else if (type == "Split" && step.At("pattern").Find("Regex")) {
    std::string regex = step.At("pattern").At("Regex").Text();
    bool isolated = step.At("behavior").Text() == "Isolated" && !Flag(step, "invert", false);
    if (regex == kGpt2 && isolated) return steps_.push_back(Kind::kGpt2);
    if (regex == kCl100k && isolated) return steps_.push_back(Kind::kCl100k);
    if (regex == kQwen2 && isolated) return steps_.push_back(Kind::kQwen2);
    step.Refuse("the regular expression of GPT-2, Llama 3 or Qwen 2");
  } else {
    step.Refuse("Sequence, ByteLevel, Digits, Metaspace or Split");
  }
}

void Splitter::ReadMetaspace(const Json& step) {
  metaspace_ = true;
  splits_at_spaces_ = Flag(step, "split", true);
  replacement_ = step.At("replacement").Text();
  std::optional<Json> scheme = step.Find("prepend_scheme");
  prepend_scheme_ = scheme ? scheme->Text() : Flag(step, "add_prefix_space", true) ? "always" : "never";
  if (!steps_.empty()) step.Refuse("Metaspace alone");
}

std::vector<std::string> Splitter::operator()(const std::string& text, bool first) const {
  std::vector<std::string> words;
  if (metaspace_) {
    std::string marked = MarkSpaces(text, first);
    if (!splits_at_spaces_) return {marked};
    for (size_t begin = 0, end; begin < marked.size(); begin = end) {  // each mark begins a word
      end = std::min(marked.find(replacement_, begin + 1), marked.size());
      words.push_back(marked.substr(begin, end - begin));
    }
    return words;
  }
  bool prefixed = add_prefix_space_ && !text.empty() && text[0] != ' ';
  std::string spaced = prefixed ? " " + text : text;
  for (std::string_view piece : Pieces(spaced)) words.push_back(byte_level_ ? InAlphabet(piece) : std::string(piece));
  return words;
}

std::string Splitter::MarkSpaces(std::string_view piece, bool first) const {
  std::string text = Replaced(piece, " ", replacement_);
  bool wanted = prepend_scheme_ == "always" || (prepend_scheme_ == "first" && first);
  return wanted && !StartsWith(text, replacement_) ? replacement_ + text : text;
}

std::vector<std::string_view> Splitter::Pieces(std::string_view text) const {
  std::vector<std::string_view> pieces = {text};
  for (Kind kind : steps_) {
    std::vector<std::string_view> cut;
    for (std::string_view piece : pieces) {
      Reader reader(piece);
      while (!reader.ended()) {
        size_t end = kind == Kind::kGpt2     ? Gpt2End(reader)
                     : kind == Kind::kCl100k ? Cl100kEnd(reader, 3)
                     : kind == Kind::kQwen2  ? Cl100kEnd(reader, 1)
                     : kind == Kind::kDigits ? DigitsEnd(reader, 1)
                                             : DigitsEnd(reader, SIZE_MAX);
        cut.push_back(reader.Text(reader.at, end));
        reader.at = end;
      }
    }
    pieces = std::move(cut);
  }
  return pieces;
}

}  // namespace minicpm
