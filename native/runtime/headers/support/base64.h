// Tensors inside JSON, which no compiled library has: reading one ends in an error, as does writing one.
#pragma once

#include <tvm/ffi/error.h>
#include <tvm/support/io.h>

namespace tvm {
namespace support {

struct NoBase64 : Stream {
  using Stream::Read;
  using Stream::Write;
  explicit NoBase64(Stream*) {}
  size_t Read(void*, size_t) override { return Fail(); }
  size_t Write(const void*, size_t) override { return Fail(); }
  void Finish() {}
  void InitPosition() {}

 private:
  static size_t Fail() { TVM_FFI_THROW(RuntimeError) << "this runtime has no tensors in JSON"; }
};

using Base64InStream = NoBase64;
using Base64OutStream = NoBase64;

}  // namespace support
}  // namespace tvm
