#include "unicode.h"

#include <algorithm>
#include <iterator>

namespace minicpm {
namespace {

struct Range {
  uint32_t first, last;
};

#include "unicode_tables.inc"

template <size_t n>
bool Holds(const Range (&ranges)[n], uint32_t code) {
  const Range* behind = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                         [](uint32_t sought, const Range& range) { return sought < range.first; });
  return behind != std::begin(ranges) && code <= behind[-1].last;
}

}  // namespace

bool IsLetter(uint32_t code) { return Holds(kLetters, code); }
bool IsNumber(uint32_t code) { return Holds(kNumbers, code); }
bool IsWhite(uint32_t code) { return Holds(kWhite, code); }

}  // namespace minicpm
