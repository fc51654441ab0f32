// What was found out before, as files in the user's cache that minicpm_mlc/base/files.py (cache_file) shares.
#pragma once

#include <optional>
#include <string>

namespace minicpm {

// What `key` was marked with. Nothing where the user has no home.
std::optional<std::string> Marked(const std::string& kind, const std::string& key);

// The file of a mark, for people; empty where there is no home.
std::string FileOfMark(const std::string& kind, const std::string& key);

// Does nothing where it can't write.
void Mark(const std::string& kind, const std::string& key, const std::string& text);

}  // namespace minicpm
