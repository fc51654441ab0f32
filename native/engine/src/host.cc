#include "host.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace minicpm {
namespace {

#if defined(__x86_64__)
constexpr const char* kMachine = "x86_64";
#elif defined(__aarch64__)
constexpr const char* kMachine = "aarch64";
#elif defined(__wasm32__)
constexpr const char* kMachine = "wasm32";
#else
#error "the name of this processor in LLVM's triples"
#endif

std::string Read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::string read = text.str();
  while (!read.empty() && (read.back() == '\n' || read.back() == ' ')) read.pop_back();
  return read;
}

// The number behind a name, as in `MemAvailable:  512 kB` or `inactive_file 4096`; 0 where there is none.
uint64_t NumberOf(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t number = 0;
    if (words >> word && word == name && words >> number) return number;
  }
  return 0;
}

#if defined(__x86_64__)

// LLVM's name of an instruction set -> that of /proc/cpuinfo, where they differ; as in minicpm_mlc/bundle/host.py.
const std::map<std::string, std::string>& OtherNames() {
  static const std::map<std::string, std::string> names = {
      {"sse3", "pni"},
      {"sse4.1", "sse4_1"},
      {"sse4.2", "sse4_2"},
      {"lzcnt", "abm"},
      {"bmi", "bmi1"},
      {"avxvnni", "avx_vnni"},
      {"avx512vbmi2", "avx512_vbmi2"},
      {"avx512vnni", "avx512_vnni"},
      {"avx512bitalg", "avx512_bitalg"},
      {"avx512vpopcntdq", "avx512_vpopcntdq"},
      {"avx512bf16", "avx512_bf16"},
      {"avx512fp16", "avx512_fp16"},
      {"amx-tile", "amx_tile"},
      {"amx-int8", "amx_int8"},
      {"amx-bf16", "amx_bf16"},
  };
  return names;
}

std::set<std::string> Flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 5, "flags") != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

bool Has(const std::set<std::string>& flags, const std::string& feature) {
  auto other = OtherNames().find(feature);
  return flags.count(other == OtherNames().end() ? feature : other->second) > 0;
}

#elif defined(__aarch64__) && defined(__linux__)

// LLVM's name -> getauxval's type and the bit, as in the kernel's arch/arm64/include/uapi/asm/hwcap.h.
std::set<std::string> Flags() {
  static const std::map<std::string, std::pair<int, int>> bits = {
      {"neon", {AT_HWCAP, 1}},     {"lse", {AT_HWCAP, 8}},   {"fullfp16", {AT_HWCAP, 10}}, {"rdm", {AT_HWCAP, 12}},
      {"dotprod", {AT_HWCAP, 20}}, {"sve", {AT_HWCAP, 22}},  {"fp16fml", {AT_HWCAP, 23}},  {"sve2", {AT_HWCAP2, 1}},
      {"i8mm", {AT_HWCAP2, 13}},   {"bf16", {AT_HWCAP2, 14}}};
  std::set<std::string> flags;
  for (const auto& [name, bit] : bits) {
    if (getauxval(bit.first) >> bit.second & 1) flags.insert(name);
  }
  return flags;
}

bool Has(const std::set<std::string>& flags, const std::string& feature) { return flags.count(feature) > 0; }

#else

std::set<std::string> Flags() { return {}; }
bool Has(const std::set<std::string>&, const std::string&) { return true; }

#endif

std::vector<int> Allowed() {
  std::vector<int> processors;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (!sched_getaffinity(0, sizeof set, &set)) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) processors.push_back(i);
    }
  }
#endif
  if (processors.empty()) processors.push_back(0);
  return processors;
}

// What a control group leaves: its limit without what it uses, but for files that are given back when needed.
uint64_t LeftInGroup(const std::string& folder, const char* limit, const char* used, const char* files) {
  std::string bound = Read(folder + "/" + limit);
  if (bound.empty() || bound.find_first_not_of("0123456789") != std::string::npos) return UINT64_MAX;
  uint64_t most = std::strtoull(bound.c_str(), nullptr, 10);
  uint64_t taken = std::strtoull(Read(folder + "/" + used).c_str(), nullptr, 10);
  uint64_t given_back = NumberOf(folder + "/memory.stat", files);
  taken = taken > given_back ? taken - given_back : 0;
  return most > taken ? most - taken : 0;
}

}  // namespace

std::string Mismatch(const Manifest& manifest) {
  std::string machine = manifest.triple.substr(0, manifest.triple.find('-'));
  if (machine == "arm64") machine = "aarch64";
  if (machine != kMachine) {
    return "it was compiled for " + machine + ", and this machine is " + kMachine;
  }
  std::set<std::string> flags = Flags();
  std::string missing;
  for (const std::string& feature : manifest.features) {
    if (flags.empty() || Has(flags, feature)) continue;
    missing += (missing.empty() ? "" : ", ") + feature;
  }
  if (!missing.empty()) return "it was compiled for " + manifest.cpu + ", and this CPU lacks " + missing;
  return "";
}

int Processors() { return static_cast<int>(Allowed().size()); }

int PhysicalCores() {
  std::set<std::string> cores;
  for (int cpu : Allowed()) {
    std::string number = std::to_string(cpu);
    std::string siblings = Read("/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? number : siblings);
  }
  return static_cast<int>(cores.size());
}

uint64_t AvailableMemory() {
  uint64_t free = NumberOf("/proc/meminfo", "MemAvailable:") * 1024;
#if defined(_SC_PHYS_PAGES)
  if (!free) free = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
#endif
  const std::string group = "/sys/fs/cgroup";
  free = std::min(free, LeftInGroup(group, "memory.max", "memory.current", "inactive_file"));
  return std::min(free, LeftInGroup(group + "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                    "total_inactive_file"));
}

}  // namespace minicpm
