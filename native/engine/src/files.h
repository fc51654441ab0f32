// Files, read whole or mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace minicpm {

inline constexpr size_t kSmallBytes = 64 << 20;  // the most of a file that is read as a whole

// All bytes of a file without a byte order mark; nothing where there is none. Fails for one that is no plain file, can't
// be read or has more than kSmallBytes.
std::optional<std::string> ReadSmall(const std::string& path);

// Bytes of a plain file; nothing where there is none.
std::optional<uint64_t> SizeOfFile(const std::string& path);
bool IsFolder(const std::string& path);

// SHA-256, 64 hexadecimal digits.
std::string Sha256OfFile(const std::string& path);
std::string Sha256(const std::string& bytes);

// A file's bytes; writing to them changes this process's copy alone.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace minicpm
