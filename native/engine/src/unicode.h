// Kinds of characters as regular expressions name them.
#pragma once

#include <cstdint>

namespace minicpm {

bool IsLetter(uint32_t code);  // \p{L}
bool IsNumber(uint32_t code);  // \p{N}
bool IsWhite(uint32_t code);   // \s

}  // namespace minicpm
