// A page has no folder of the user's, and no device that is checked.
#include "cache_marks.h"

namespace minicpm {

bool IsMarked(const std::string&, const std::string&) { return false; }

void Mark(const std::string&, const std::string&, const std::string&) {}

}  // namespace minicpm
