#include "tensors.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "error.h"

namespace minicpm {
namespace {

constexpr size_t kAlignment = 64;
constexpr DLDevice kHost = {kDLCPU, 0};

struct Given {  // memory that somebody else keeps
  char* data;
  std::shared_ptr<void> owner;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) { owner.reset(); }
};

Tensor Over(char* data, std::shared_ptr<void> owner, const std::vector<int64_t>& shape, DLDataType dtype) {
  return Tensor::FromNDAlloc(Given{data, std::move(owner)}, tvm::ffi::ShapeView(shape.data(), shape.size()), dtype,
                             kHost);
}

std::shared_ptr<void> Aligned(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes ? bytes : 1)) Fail(MINICPM_MEMORY, bytes, " bytes of memory are not free");
  return {memory, std::free};
}

template <typename Value>
Tensor Copied(const std::vector<Value>& values, const std::vector<int64_t>& shape, DLDataTypeCode code) {
  Tensor tensor = NewTensor(shape, DLDataType{static_cast<uint8_t>(code), 32, 1});
  if (!values.empty()) std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(Value));
  return tensor;
}

}  // namespace

uint64_t BytesOf(const std::vector<int64_t>& shape, DLDataType dtype) {
  uint64_t bytes = dtype.bits / 8;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) return UINT64_MAX;
  }
  return bytes;
}

Tensor ReservedTensor(const std::vector<int64_t>& shape, DLDataType dtype) {
  uint64_t bytes = BytesOf(shape, dtype);
  void* memory = bytes > SIZE_MAX ? MAP_FAILED
                                  : mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    Fail(MINICPM_MEMORY, bytes, " bytes for the cache can't be reserved; open the bundle with a smaller \"context\"");
  }
  std::shared_ptr<void> owner(memory, [bytes](void* mapped) { munmap(mapped, bytes); });
  return Over(static_cast<char*>(memory), owner, shape, dtype);
}

Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype) {
  std::shared_ptr<void> memory = Aligned(BytesOf(shape, dtype));
  return Over(static_cast<char*>(memory.get()), memory, shape, dtype);
}

Tensor TensorOver(char* data, std::shared_ptr<void> owner, const std::vector<int64_t>& shape, DLDataType dtype) {
  if (reinterpret_cast<uintptr_t>(data) % kAlignment == 0) return Over(data, std::move(owner), shape, dtype);
  Tensor copy = NewTensor(shape, dtype);
  std::memcpy(copy.data_ptr(), data, BytesOf(shape, dtype));
  return copy;
}

Tensor Int32s(const std::vector<int32_t>& values, const std::vector<int64_t>& shape) {
  return Copied(values, shape, kDLInt);
}

Tensor Float32s(const std::vector<float>& values, const std::vector<int64_t>& shape) {
  return Copied(values, shape, kDLFloat);
}

}  // namespace minicpm
