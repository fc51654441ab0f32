// Tensors over memory of this process, aligned for compiled code.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace minicpm {

using tvm::ffi::Tensor;

// Zeros whose memory the system commits as it is written. Fails where the address space has no room.
Tensor ReservedTensor(const std::vector<int64_t>& shape, DLDataType dtype);

// The bytes at `data`, which `owner` keeps there; copied where they are not aligned.
Tensor TensorOver(char* data, std::shared_ptr<void> owner, const std::vector<int64_t>& shape, DLDataType dtype);

// Memory that was never written.
Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype);

// Values of a call, copied.
Tensor Int32s(const std::vector<int32_t>& values, const std::vector<int64_t>& shape);
Tensor Float32s(const std::vector<float>& values, const std::vector<int64_t>& shape);

uint64_t BytesOf(const std::vector<int64_t>& shape, DLDataType dtype);

}  // namespace minicpm
