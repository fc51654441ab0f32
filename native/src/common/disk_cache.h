// Files in the user's cache folder that may vanish or be damaged without harm.
#pragma once

#include <cstdint>
#include <string>

namespace minicpm {

// FNV-1a.
uint64_t Hash(const std::string& data);

// Empty when there is no such file or it isn't whole.
std::string ReadCache(const std::string& name);

// In one piece: readers see the old file or the new one. Does nothing where it can't write.
void WriteCache(const std::string& name, const std::string& data);

}  // namespace minicpm
