#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "error.h"
#include "sha256.h"

namespace minicpm {
namespace {

constexpr size_t kBlock = 1 << 20;

[[noreturn]] void FailToRead(const std::string& path) {
  Fail(MINICPM_BUNDLE, path, " can't be read (", std::strerror(errno), "); ", kRepair);
}

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : number(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (number < 0) FailToRead(path);
  }
  ~Descriptor() { close(number); }
  const int number;
};

}  // namespace

std::optional<uint64_t> SizeOfFile(const std::string& path) {
  struct stat seen;
  if (stat(path.c_str(), &seen)) return std::nullopt;
  if (!S_ISREG(seen.st_mode)) return std::nullopt;
  return static_cast<uint64_t>(seen.st_size);
}

bool IsFolder(const std::string& path) {
  struct stat seen;
  return !stat(path.c_str(), &seen) && S_ISDIR(seen.st_mode);
}

std::optional<std::string> ReadSmall(const std::string& path) {
  std::optional<uint64_t> size = SizeOfFile(path);
  if (!size) return std::nullopt;
  if (*size > kSmallBytes) Fail(MINICPM_BUNDLE, path, " has more than ", kSmallBytes, " bytes; ", kRepair);
  Descriptor file(path);
  std::string bytes(*size, '\0');
  if (read(file.number, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) FailToRead(path);
  if (bytes.compare(0, 3, "\xEF\xBB\xBF") == 0) bytes.erase(0, 3);
  return bytes;
}

std::string Sha256OfFile(const std::string& path) {
  Descriptor file(path);
  Sha256Digest digest;
  std::vector<char> block(kBlock);
  for (ssize_t n; (n = read(file.number, block.data(), block.size()));) {
    if (n < 0) FailToRead(path);
    digest.Add(block.data(), static_cast<size_t>(n));
  }
  return digest.Hex();
}

std::string Sha256(const std::string& bytes) {
  Sha256Digest digest;
  digest.Add(bytes.data(), bytes.size());
  return digest.Hex();
}

MappedFile::MappedFile(const std::string& path) {
  Descriptor file(path);
  struct stat seen;
  if (fstat(file.number, &seen)) FailToRead(path);
  size_ = static_cast<size_t>(seen.st_size);
  if (!size_) Fail(MINICPM_BUNDLE, path, " is empty; ", kRepair);
  void* mapped = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.number, 0);
  if (mapped == MAP_FAILED) FailToRead(path);
  data_ = static_cast<char*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

}  // namespace minicpm
