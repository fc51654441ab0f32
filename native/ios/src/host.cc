// The machine of an app on Apple's systems, in the place of the engine's host.cc.
#include "host.h"

#include <os/proc.h>
#include <sys/sysctl.h>

#include <algorithm>

namespace minicpm {
namespace {

int Count(const char* name) {
  int count = 0;
  size_t size = sizeof count;
  return sysctlbyname(name, &count, &size, nullptr, 0) == 0 ? count : 0;
}

}  // namespace

std::string Mismatch(const Manifest& manifest) {
  if (manifest.device == "cpu" && manifest.triple.rfind("arm64-apple-", 0) == 0) return "";
  return "it was compiled for " + manifest.device + " on " + manifest.triple +
         ", and this engine runs on the processors of Apple's phones; compile it with --device ios --gpu none";
}

// The fast ones: slow cores would keep the others waiting.
int PhysicalCores() {
  int fast = Count("hw.perflevel0.physicalcpu");
  return std::max(1, fast ? fast : Count("hw.physicalcpu"));
}

int Processors() { return std::max(1, Count("hw.logicalcpu")); }

// What the app may take before the system ends it.
uint64_t AvailableMemory() { return os_proc_available_memory(); }

}  // namespace minicpm
