// What was found out before, as files in the user's cache that minicpm_mlc/base/files.py (cache_file) shares.
#pragma once

#include <string>

namespace minicpm {

// Whether `key` was marked. False where the user has no home.
bool IsMarked(const std::string& kind, const std::string& key);

// Does nothing where it can't write.
void Mark(const std::string& kind, const std::string& key, const std::string& text);

}  // namespace minicpm
