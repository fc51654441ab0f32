// Unicode's normal form C: characters that can be written in several ways as one of them.
#pragma once

#include <string>

namespace minicpm {

// The normal form of a text in UTF-8.
std::string Nfc(const std::string& text);

}  // namespace minicpm
