#include "text.h"

#include <algorithm>

namespace minicpm {
namespace {

uint8_t Byte(std::string_view text, size_t at) { return static_cast<uint8_t>(text[at]); }

// What a first byte asks for: how many bytes the character has (0: it begins none) and which the second one may be.
struct Lead {
  size_t bytes;
  uint8_t low, high;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes from the start of the text that begin a character, at most all of it.
size_t GoodBytes(std::string_view text, Lead lead) {
  size_t good = 1;
  while (good < lead.bytes && good < text.size()) {
    uint8_t byte = Byte(text, good);
    bool fits = good == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xC0) == 0x80;
    if (!fits) break;
    ++good;
  }
  return good;
}

}  // namespace

Character CharacterAt(std::string_view text, size_t at) {
  size_t bytes = std::min(std::max<size_t>(LeadOf(Byte(text, at)).bytes, 1), text.size() - at);
  uint32_t code = Byte(text, at);
  if (bytes > 1) code &= 0x7F >> bytes;
  for (size_t i = 1; i < bytes; ++i) code = code << 6 | (Byte(text, at + i) & 0x3F);
  return {code, bytes};
}

void AppendCharacter(uint32_t code, std::string* text) {
  auto put = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

bool IsSpace(uint32_t code) {
  return (code >= 9 && code <= 13) || (code >= 0x1C && code <= 0x20) || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
         code == 0x205F || code == 0x3000;
}

std::string_view StripLeft(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    Character c = CharacterAt(text, at);
    if (!IsSpace(c.code)) break;
    at += c.bytes;
  }
  return text.substr(at);
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at && (Byte(text, at) & 0xC0) == 0x80) --at;
    if (!IsSpace(CharacterAt(text, at).code)) break;
    text = text.substr(0, at);
  }
  return text;
}

std::string_view Strip(std::string_view text) { return StripRight(StripLeft(text)); }

bool StartsWith(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

bool EndsWith(std::string_view text, std::string_view with) {
  return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}

std::string Replaced(std::string_view text, std::string_view what, std::string_view with) {
  std::string result;
  for (size_t found; !what.empty() && (found = text.find(what)) != std::string_view::npos;) {
    result.append(text.substr(0, found)).append(with);
    text = text.substr(found + what.size());
  }
  return result.append(text);
}

std::string Joined(const std::vector<std::string>& parts, const std::string& between) {
  std::string result;
  for (const std::string& part : parts) result += (result.empty() ? "" : between) + part;
  return result;
}

size_t Overlap(std::string_view text, std::string_view stop) {
  for (size_t n = std::min(text.size(), stop.empty() ? 0 : stop.size() - 1); n > 0; --n) {
    if (EndsWith(text, stop.substr(0, n))) return n;
  }
  return 0;
}

std::string Utf8Decoder::Feed(std::string_view bytes) {
  held_.append(bytes);
  std::string text;
  std::string_view rest = held_;
  while (!rest.empty()) {
    Lead lead = LeadOf(Byte(rest, 0));
    size_t good = lead.bytes ? GoodBytes(rest, lead) : 1;
    if (lead.bytes && good < lead.bytes && good == rest.size()) break;  // more may come
    if (good == lead.bytes) {
      text.append(rest.substr(0, good));
    } else {
      text.append(kReplacement);
    }
    rest = rest.substr(good);
  }
  held_ = std::string(rest);
  return text;
}

std::string Utf8Decoder::Finish() {
  bool cut = !held_.empty();
  held_.clear();
  return cut ? kReplacement : "";
}

std::string WholeCharacters(std::string_view bytes) {
  Utf8Decoder decoder;
  std::string text = decoder.Feed(bytes);
  return text + decoder.Finish();
}

std::string Sentence(std::string_view bytes) {
  constexpr size_t kFirst = 500, kLast = 300;
  std::string text(bytes);
  if (text.size() > kFirst + kLast) text = text.substr(0, kFirst) + "..." + text.substr(text.size() - kLast);
  return Replaced(WholeCharacters(text), std::string_view("\0", 1), kReplacement);
}

}  // namespace minicpm
