// A mapped buffer of the host's, taken in turn by what is copied to and from the device and by kernels' scalars.
#pragma once

#include <deque>
#include <optional>

#include "gpu.h"

namespace minicpm {
namespace vulkan {

class Ring {
 public:
  static constexpr VkDeviceSize kSize = 16 << 20;

  // Throws RuntimeError when the host has no memory for it.
  explicit Ring(const Gpu& gpu);

  VkBuffer buffer() const { return memory_.buffer; }
  char* at(VkDeviceSize offset) const { return memory_.mapped + offset; }

  // The offset of `bytes` bytes that are the batch's until it is released, or nothing until others are.
  std::optional<VkDeviceSize> Take(VkDeviceSize bytes, uint64_t batch);
  // What the batches up to this one took is free again.
  void Release(uint64_t batch);

 private:
  struct Taken {
    uint64_t batch;
    VkDeviceSize begin;
  };

  Gpu::Memory memory_;
  VkDeviceSize head_ = 0;
  std::deque<Taken> taken_;
};

}  // namespace vulkan
}  // namespace minicpm
