// The machine that a page is: its workers, and the four gigabytes that 32 bits address.
#include "host.h"

extern "C" {
uint32_t minicpm_web_workers = 0;  // that run loops of compiled code beside this thread: the thread pool's
void minicpm_web_use_workers(uint32_t workers) { minicpm_web_workers = workers; }
}

namespace minicpm {

std::string Mismatch(const Manifest& manifest) {
  if (manifest.device == "cpu" && manifest.triple.rfind("wasm32-", 0) == 0) return "";
  return "it was compiled for " + manifest.device + " on " + manifest.triple +
         ", and this is a web page; compile it with --device web";
}

int PhysicalCores() { return Processors(); }

int Processors() { return static_cast<int>(minicpm_web_workers) + 1; }

uint64_t AvailableMemory() {
  constexpr uint64_t kPage = 65536, kAll = uint64_t{1} << 32;
  return kAll - __builtin_wasm_memory_size(0) * kPage;
}

}  // namespace minicpm
