#include "nfc.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "text.h"

namespace minicpm {
namespace {

// A character that means the same as one or two others (`second` 0: one).
struct Composed {
  uint32_t code, first, second;
};
// Marks that keep their order among each other; marks of different classes are put in the order of their classes.
struct MarkRange {
  uint32_t first, last;
  int order;
};

#include "nfc_tables.inc"

// Hangul syllables are made of their letters by counting: the Unicode Standard, 3.12.
constexpr uint32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11A7;
constexpr uint32_t kLeadCount = 19, kVowelCount = 21, kTrailCount = 28, kSyllableCount = 11172;

const Composed* Parts(uint32_t code) {
  auto find = [&](const auto& table) -> const Composed* {
    auto at = std::lower_bound(std::begin(table), std::end(table), code,
                               [](const Composed& entry, uint32_t sought) { return entry.code < sought; });
    return at != std::end(table) && at->code == code ? at : nullptr;
  };
  const Composed* found = find(kComposed);
  return found ? found : find(kNeverComposed);
}

int OrderOf(uint32_t code) {
  auto behind = std::upper_bound(std::begin(kMarks), std::end(kMarks), code,
                                 [](uint32_t sought, const MarkRange& range) { return sought < range.first; });
  return behind != std::begin(kMarks) && code <= behind[-1].last ? behind[-1].order : 0;
}

void Decompose(uint32_t code, std::vector<uint32_t>* codes) {
  uint32_t syllable = code - kSyllables;
  if (syllable < kSyllableCount) {
    codes->push_back(kLeads + syllable / (kVowelCount * kTrailCount));
    codes->push_back(kVowels + syllable / kTrailCount % kVowelCount);
    if (syllable % kTrailCount) codes->push_back(kTrails + syllable % kTrailCount);
    return;
  }
  const Composed* parts = Parts(code);
  if (!parts) return codes->push_back(code);
  Decompose(parts->first, codes);
  if (parts->second) Decompose(parts->second, codes);
}

void OrderMarks(std::vector<uint32_t>* codes) {
  for (auto begin = codes->begin(); begin != codes->end();) {
    auto is_mark = [](uint32_t code) { return OrderOf(code) != 0; };
    begin = std::find_if(begin, codes->end(), is_mark);
    auto end = std::find_if_not(begin, codes->end(), is_mark);
    std::stable_sort(begin, end, [](uint32_t a, uint32_t b) { return OrderOf(a) < OrderOf(b); });
    begin = end;
  }
}

// The character that two make; 0 where they make none.
uint32_t Pair(uint32_t first, uint32_t second) {
  static const std::map<std::pair<uint32_t, uint32_t>, uint32_t> pairs = [] {
    std::map<std::pair<uint32_t, uint32_t>, uint32_t> made;
    for (const Composed& entry : kComposed) made[{entry.first, entry.second}] = entry.code;
    return made;
  }();
  uint32_t lead = first - kLeads, vowel = second - kVowels, syllable = first - kSyllables, trail = second - kTrails;
  if (lead < kLeadCount && vowel < kVowelCount) return kSyllables + (lead * kVowelCount + vowel) * kTrailCount;
  bool open = syllable < kSyllableCount && syllable % kTrailCount == 0;
  if (open && trail > 0 && trail < kTrailCount) return first + trail;
  auto found = pairs.find({first, second});
  return found == pairs.end() ? 0 : found->second;
}

std::vector<uint32_t> Recomposed(const std::vector<uint32_t>& codes) {
  std::vector<uint32_t> joined;
  size_t base = 0;  // the last character that is no mark, where there is one
  bool has_base = false;
  int before = -1;  // the order of the last mark behind it
  for (uint32_t code : codes) {
    int order = OrderOf(code);
    uint32_t pair = has_base && before < order ? Pair(joined[base], code) : 0;
    if (pair) {
      joined[base] = pair;
      continue;
    }
    before = order ? order : -1;
    if (!order) {
      base = joined.size();
      has_base = true;
    }
    joined.push_back(code);
  }
  return joined;
}

}  // namespace

std::string Nfc(const std::string& text) {
  // what begins with a lower byte is below U+0300, and normal as it is
  bool normal = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
  if (normal) return text;
  std::vector<uint32_t> codes;
  for (size_t at = 0; at < text.size();) {
    Character character = CharacterAt(text, at);
    Decompose(character.code, &codes);
    at += character.bytes;
  }
  OrderMarks(&codes);
  std::string result;
  for (uint32_t code : Recomposed(codes)) AppendCharacter(code, &result);
  return result;
}

}  // namespace minicpm
