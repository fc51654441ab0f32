// Computed tokens in a file, of the format of minicpm_mlc/runtime_py/saved_state.py: Python goes on from what is saved
// here, and the other way round.
//
//     MAGIC | texts, int32 | each pool's pages, as stored | footer, JSON | its length, its SHA-256
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "library.h"

namespace minicpm {

// Writes a sequence whose pages are the first ones of `pools`; all or nothing, and on the disk once it returns.
// `manifest`: the SHA-256 of the bundle's.
void SaveSession(const std::string& path, const std::string& manifest, const std::vector<int32_t>& tokens,
                 int64_t page_size, const Pools& pools);

// Reads the sequence of a file into the first pages of `pools`; returns its tokens. Fails for a file that is damaged,
// another bundle's, or longer than `context` tokens.
std::vector<int32_t> LoadSession(const std::string& path, const std::string& manifest, int64_t page_size,
                                 int64_t context, const Pools& pools);

}  // namespace minicpm
