#include "disk_cache.h"

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace minicpm {
namespace {

namespace fs = std::filesystem;

fs::path Folder() {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value != nullptr ? value : "");
  };
#if defined(_WIN32)
  fs::path base = variable("LOCALAPPDATA");
#elif defined(__APPLE__)
  fs::path base = variable("HOME") / "Library" / "Caches";
#else
  fs::path base = variable("XDG_CACHE_HOME");
  if (base.empty()) base = variable("HOME") / ".cache";
#endif
  return base.is_absolute() ? base / "minicpm-mlc" : fs::path();
}

}  // namespace

uint64_t Hash(const std::string& data) {
  uint64_t hash = 14695981039346656037u;
  for (unsigned char byte : data) hash = (hash ^ byte) * 1099511628211u;
  return hash;
}

std::string ReadCache(const std::string& name) {
  std::ifstream file(Folder() / name, std::ios::binary);
  std::string data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  uint64_t hash;
  if (data.size() < sizeof(hash)) return {};
  std::memcpy(&hash, data.data(), sizeof(hash));
  data.erase(0, sizeof(hash));
  return Hash(data) == hash ? data : std::string();  // drivers check that a cache is theirs, not that it is whole
}

void WriteCache(const std::string& name, const std::string& data) {
  fs::path folder = Folder();
  if (folder.empty()) return;
  std::error_code ignored;
  fs::create_directories(folder, ignored);
  auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  fs::path draft = folder / (name + "." + std::to_string(now));
  uint64_t hash = Hash(data);
  std::ofstream file(draft, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&hash), sizeof(hash));
  file.write(data.data(), static_cast<std::streamsize>(data.size()));
  file.close();
  if (file) fs::rename(draft, folder / name, ignored);
  if (!file || ignored) fs::remove(draft, ignored);
}

}  // namespace minicpm
