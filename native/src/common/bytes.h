// Reads what TVM's serializer wrote: little-endian, lengths as uint64.
#pragma once

#include <tvm/ffi/error.h>
#include <tvm/ffi/string.h>

#include <cstring>
#include <string>
#include <vector>

namespace minicpm {

class Reader {
 public:
  // `device` names the part of the library in errors. Every read throws RuntimeError when the bytes end early.
  Reader(const tvm::ffi::Bytes& bytes, const char* device) : at_(bytes.data()), left_(bytes.size()), device_(device) {}

  template <typename T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof(T)), sizeof(T));
    return value;
  }

  std::string Text() {
    size_t size = Number<uint64_t>();
    return std::string(Take(size), size);
  }

  std::vector<uint32_t> Words() {
    size_t count = Number<uint64_t>();
    if (count > left_ / sizeof(uint32_t)) Fail();
    std::vector<uint32_t> words(count);
    if (count > 0) std::memcpy(words.data(), Take(count * sizeof(uint32_t)), count * sizeof(uint32_t));
    return words;
  }

 private:
  const char* Take(size_t size) {
    if (size > left_) Fail();
    const char* taken = at_;
    at_ += size;
    left_ -= size;
    return taken;
  }

  [[noreturn]] void Fail() {
    TVM_FFI_THROW(RuntimeError) << "the library's " << device_ << " part is cut off; compile the bundle again";
    TVM_FFI_UNREACHABLE();
  }

  const char* at_;
  size_t left_;
  const char* device_;
};

}  // namespace minicpm
