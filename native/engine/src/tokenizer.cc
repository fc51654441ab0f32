#include "tokenizer.h"

#include <cstdlib>

#include "text.h"
#include "thinking.h"

namespace minicpm {
namespace {

constexpr const char* kMark = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// The byte of a token such as <0x0A>; -1 for any other.
int ByteOf(const std::string& text) {
  bool fits = text.size() == 6 && StartsWith(text, "<0x") && text[5] == '>' &&
              text.find_first_not_of("0123456789ABCDEFabcdef", 3) == 5;
  return fits ? static_cast<int>(std::strtol(text.substr(3, 2).c_str(), nullptr, 16)) : -1;
}

// Bytes by GPT-2's alphabet; the text itself where a character isn't of it.
std::string FromAlphabet(const std::string& text) {
  static const std::map<std::string, char> bytes = [] {
    std::map<std::string, char> made;
    for (size_t byte = 0; byte < 256; ++byte) made[ByteAlphabet()[byte]] = static_cast<char>(byte);
    return made;
  }();
  std::string result;
  for (size_t at = 0; at < text.size();) {
    std::string character = text.substr(at, CharacterAt(text, at).bytes);
    auto byte = bytes.find(character);
    if (byte == bytes.end()) return text;
    result += byte->second;
    at += character.size();
  }
  return result;
}

Json ListOr(const Json& json, const char* name) {
  std::optional<Json> found = json.Find(name);
  return found ? *found : Json::Parse("[]", name);
}

}  // namespace

Tokenizer::Tokenizer(const Json& json, int64_t vocab_size)
    : normalizer_(json.Find("normalizer")),
      splitter_(json.Find("pre_tokenizer")),
      bpe_(json.At("model"), vocab_size),
      added_(ListOr(json, "added_tokens"), normalizer_) {
  for (const AddedToken& token : added_.all()) {
    if (token.id >= vocab_size) FailForeign(token.id, vocab_size);
    texts_[token.id] = token.content;
    if (!token.special || token.content.empty()) continue;
    control_[token.content] = token.id;
    if (token.content != kOpen && token.content != kClose) hidden_[token.id] = token.content;
  }
  if (std::optional<Json> decoder = json.Find("decoder")) ReadDecoder(*decoder);
}

void Tokenizer::ReadDecoder(const Json& json) {
  std::string type = json.At("type").Text();
  if (type == "Sequence") {
    for (const Json& step : json.At("decoders").List()) ReadDecoder(step);
  } else if (type == "Strip") {
    strips_first_space_ = strips_first_space_ || json.At("start").Whole(0, INT32_MAX) > 0;
  } else if (type == "Metaspace") {
    std::optional<Json> scheme = json.Find("prepend_scheme");
    strips_first_space_ = strips_first_space_ || (scheme && scheme->Text() != "never");
  } else if (type == "ByteLevel") {
    decodes_bytes_ = true;
  } else if (type != "Replace" && type != "ByteFallback" && type != "Fuse") {
    json.Refuse("Sequence, Replace, ByteFallback, Fuse, Strip, Metaspace or ByteLevel");
  }
}

std::vector<int32_t> Tokenizer::Encode(const std::string& text, bool plain) const {
  std::vector<int32_t> ids;
  for (const Symbol& symbol : Symbols(text, plain)) ids.push_back(symbol.id);
  return ids;
}

std::vector<Symbol> Tokenizer::Symbols(const std::string& text, bool plain) const {
  std::vector<Symbol> symbols;
  for (const Part& part : added_.Split(text, false, plain)) {
    if (part.id >= 0) {
      symbols.push_back({part.id, part.text.size()});
    } else {
      AppendWords(normalizer_(std::string(part.text)), plain, part.text.data() == text.data(), &symbols);
    }
  }
  return symbols;
}

void Tokenizer::AppendWords(const std::string& text, bool plain, bool first, std::vector<Symbol>* symbols) const {
  for (const Part& part : added_.Split(text, true, plain)) {
    if (part.id >= 0) {
      symbols->push_back({part.id, part.text.size()});
      continue;
    }
    bool begins = first && part.text.data() == text.data();
    for (const std::string& word : splitter_(std::string(part.text), begins)) {
      std::vector<Symbol> word_symbols = bpe_.Encode(word);
      symbols->insert(symbols->end(), word_symbols.begin(), word_symbols.end());
    }
  }
}

std::vector<int32_t> Tokenizer::EncodeMiddle(const std::string& text) const {
  size_t before = 0, at = 0;
  for (const Symbol& symbol : Symbols("a", false)) before += symbol.bytes;
  std::vector<int32_t> ids;
  for (const Symbol& symbol : Symbols("a" + text, false)) {
    if (at >= before) ids.push_back(symbol.id);
    if (at < before && at + symbol.bytes > before) return Encode(text);  // the text's beginning was joined with the "a"
    at += symbol.bytes;
  }
  return ids;
}

std::string Tokenizer::BytesOf(int32_t id) const {
  if (hidden_.count(id)) return "";
  auto added = texts_.find(id);
  const std::string* text = added != texts_.end() ? &added->second : bpe_.TextOf(id);
  if (!text) return "";
  if (decodes_bytes_) return FromAlphabet(*text);
  int byte = ByteOf(*text);
  return byte >= 0 ? std::string(1, static_cast<char>(byte)) : Replaced(*text, kMark, " ");
}

}  // namespace minicpm
