// Streams over bytes in memory.
#pragma once

#include <tvm/support/io.h>
#include <tvm/support/serializer.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace tvm {
namespace support {

class BytesOutStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit BytesOutStream(std::string* bytes) : bytes_(bytes) {}
  size_t Read(void*, size_t) override { return 0; }
  size_t Write(const void* from, size_t size) override {
    bytes_->append(static_cast<const char*>(from), size);
    return size;
  }

 private:
  std::string* bytes_;
};

class BytesInStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  template <typename Bytes>
  explicit BytesInStream(const Bytes& bytes) : at_(bytes.data()), left_(bytes.size()) {}
  size_t Read(void* to, size_t size) override {
    size_t taken = std::min(size, left_);
    if (taken) std::memcpy(to, at_, taken);
    at_ += taken;
    left_ -= taken;
    return taken;
  }
  size_t Write(const void*, size_t) override { return 0; }

 private:
  const char* at_;
  size_t left_;
};

}  // namespace support
}  // namespace tvm
