#include "context.h"

#include <algorithm>
#include <cstdio>
#include <string>

namespace minicpm {
namespace {

std::string Gb(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

// In whole pages, together with the weights; 0 if none.
int64_t Largest(const Manifest& manifest, uint64_t available) {
  uint64_t fixed = manifest.MemoryNeed(0), page = manifest.MemoryNeed(1) - fixed;
  uint64_t pages = available > fixed ? (available - fixed) / page : 0;
  uint64_t most = static_cast<uint64_t>(manifest.max_context);
  return static_cast<int64_t>(std::min(most, pages * static_cast<uint64_t>(manifest.page_size)));
}

}  // namespace

int64_t ChooseContext(const Manifest& manifest, std::optional<int64_t> asked, uint64_t available) {
  if (asked && (*asked < 1 || *asked > manifest.max_context)) {
    Fail(MINICPM_CONTEXT, "a context of ", *asked, " tokens was asked for; this bundle holds 1 to ",
         manifest.max_context, ": give \"context\": ", manifest.max_context, " or less");
  }
  int64_t fits = Largest(manifest, available);
  if (fits && (!asked || *asked <= fits)) return asked.value_or(fits);
  uint64_t size = static_cast<uint64_t>(asked.value_or(manifest.page_size));
  int64_t pages = fits / manifest.page_size;  // free memory moves between processes: 3 % less is named
  std::string hint = fits ? "give \"context\": " + std::to_string((pages - pages / 32) * manifest.page_size) + " or less"
                          : "close other programs, or compile with --quant w4";
  Fail(MINICPM_MEMORY, "a context of ", size, " tokens needs ", Gb(manifest.MemoryNeed(size)), " (",
       Gb(manifest.MemoryNeed(0)), " of it for weights and activations), ", Gb(available), " of memory is free; ", hint);
}

}  // namespace minicpm
