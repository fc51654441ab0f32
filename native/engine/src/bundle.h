// A bundle that was checked: it is whole, fits this machine and this runtime.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "manifest.h"

namespace minicpm {

struct Bundle {
  // Fails with what to do. `check`: also the SHA-256 of every file, not the library's alone.
  // `sha256`: of the only manifests that may run, empty for any. `device`: that of the library, where there are two;
  // empty for the first one's.
  static Bundle Open(const std::string& folder, bool check, const std::vector<std::string>& sha256,
                     const std::string& device = "");

  // What a file is called here: the library's own one, where the bundle holds two, or else the one of both.
  std::string Named(const std::string& name) const;

  // A file that the manifest lists, as a path; fails for any other.
  std::string File(const std::string& name) const;

  // The JSON of a small file; nothing where the bundle has none.
  std::optional<Json> Object(const std::string& name) const;

  std::string folder;
  Manifest manifest;
  std::string linked;  // the prefix of a library that is part of this program, in place of the bundle's file
};

}  // namespace minicpm
