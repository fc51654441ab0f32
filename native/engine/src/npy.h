// Arrays as NumPy stores them: .npy files, and .npz archives that pack nothing.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace minicpm {

// Numbers in rows, the last axis first to change; `data` lies in the bytes that it was read of.
struct Npy {
  // Nothing for other bytes.
  static std::optional<Npy> Of(std::string_view bytes);

  size_t itemsize() const { return static_cast<size_t>(kind.back() - '0'); }
  double Value(size_t i) const;

  std::string kind;  // "f4", "f2", and i or u with 1, 2, 4 or 8
  std::vector<int64_t> shape;
  std::string_view data;
};

// The files of an archive by their names; nothing for other bytes.
std::optional<std::map<std::string, std::string_view>> FilesOfZip(std::string_view bytes);

// The number of a kind, as in Npy, at `bytes`.
double NumberAt(const std::string& kind, const char* bytes);

}  // namespace minicpm
