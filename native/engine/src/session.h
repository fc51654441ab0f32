// Computed tokens in a file, of the format of minicpm_mlc/runtime_py/saved_state.py: Python goes on from what is saved
// here, and the other way round.
//
//     MAGIC | texts, int32 | each pool's pages, as stored | footer, JSON | its length, its SHA-256
#pragma once

#include <string>
#include <vector>

#include "device_memory.h"
#include "library.h"
#include "pages.h"
#include "prefix_cache.h"

namespace minicpm {

// What a file has: pages, each behind the one before it, and the tokens of the sequence itself.
struct Saved {
  std::vector<KeptPage> pages;
  std::vector<int32_t> own;
};

// Writes pages of `pools`; all or nothing, and on the disk once it returns. `manifest`: the SHA-256 of the bundle's.
void SaveSession(const std::string& path, const std::string& manifest, const Saved& saved, const Memory& memory,
                 const Pools& pools);

// Reads a file's pages into new pages of `pool`, of one owner each: those of the sequence, and of the others as many as
// there is room for. Fails for a file that is damaged, another bundle's, or whose sequence is longer than `context`.
Saved LoadSession(const std::string& path, const std::string& manifest, int64_t context, const Memory& memory,
                  const Pools& pools, PagePool* pool);

}  // namespace minicpm
