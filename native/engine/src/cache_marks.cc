#include "cache_marks.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "files.h"

namespace minicpm {
namespace {

// Empty where the user has no home.
std::string FolderOf(const std::string& kind) {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  std::string base = variable("XDG_CACHE_HOME");
  if (base.empty() && !variable("HOME").empty()) base = variable("HOME") + "/.cache";
  return base.empty() || base[0] != '/' ? "" : base + "/minicpm-mlc/" + kind;
}

void MakeFolders(const std::string& folder) {
  for (size_t at = 1; (at = folder.find('/', at)) != std::string::npos; ++at) mkdir(folder.substr(0, at).c_str(), 0777);
  mkdir(folder.c_str(), 0777);
}

}  // namespace

std::string FileOfMark(const std::string& kind, const std::string& key) {
  std::string folder = FolderOf(kind);
  return folder.empty() ? "" : folder + "/" + Sha256(key) + ".json";
}

std::optional<std::string> Marked(const std::string& kind, const std::string& key) {
  std::string file = FileOfMark(kind, key);
  return file.empty() ? std::nullopt : ReadSmall(file);
}

void Mark(const std::string& kind, const std::string& key, const std::string& text) {
  std::string folder = FolderOf(kind);
  if (folder.empty()) return;
  MakeFolders(folder);
  std::string file = FileOfMark(kind, key), partial = file + "." + std::to_string(getpid());
  FILE* opened = std::fopen(partial.c_str(), "wb");
  if (!opened) return;
  bool whole = std::fwrite(text.data(), 1, text.size(), opened) == text.size();
  whole = !std::fclose(opened) && whole;
  if (!whole || std::rename(partial.c_str(), file.c_str())) std::remove(partial.c_str());
}

}  // namespace minicpm
