#include "artifact.h"

#include <tvm/ffi/error.h>

#include <cstring>

namespace minicpm {
namespace {

// Little-endian, lengths as uint64: the layout of TVM's serializer.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), left_(size) {}

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

 private:
  const char* Take(size_t size) {
    if (size > left_) TVM_FFI_THROW(RuntimeError) << "the library's OpenCL part is cut off; compile the bundle again";
    const char* taken = at_;
    at_ += size;
    left_ -= size;
    return taken;
  }

  const char* at_;
  size_t left_;
};

DLDataType ReadType(Reader* reader) {
  DLDataType type;
  type.code = reader->Number<uint8_t>();
  type.bits = reader->Number<uint8_t>();
  type.lanes = reader->Number<uint16_t>();
  return type;
}

KernelInfo ReadKernel(Reader* reader) {
  KernelInfo info;
  info.name = reader->Text();
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) info.arg_types.push_back(ReadType(reader));
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) info.launch_tags.push_back(reader->Text());
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) reader->Number<int32_t>();  // tensor maps: CUDA only
  return info;
}

}  // namespace

Artifact ReadArtifact(const tvm::ffi::Bytes& bytes) {
  Reader reader(bytes.data(), bytes.size());
  Artifact artifact;
  artifact.format = reader.Text();
  for (uint64_t n = reader.Number<uint64_t>(); n > 0; --n) {
    std::string key = reader.Text();
    artifact.kernels[key] = ReadKernel(&reader);
  }
  artifact.source = reader.Text();
  return artifact;
}

}  // namespace minicpm
