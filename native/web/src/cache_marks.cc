// A page has no folder of the user's, and no device that is checked.
#include "cache_marks.h"

namespace minicpm {

std::string FileOfMark(const std::string&, const std::string&) { return ""; }

std::optional<std::string> Marked(const std::string&, const std::string&) { return std::nullopt; }

void Mark(const std::string&, const std::string&, const std::string&) {}

}  // namespace minicpm
