#include "ring.h"

namespace minicpm {
namespace vulkan {

Ring::Ring(const Gpu& gpu) {
  std::optional<Gpu::Memory> memory = gpu.Allocate(kSize, kStagingUsage, gpu.host);
  if (!memory) Check(VK_ERROR_OUT_OF_HOST_MEMORY, "allocating the buffer for copies");
  memory_ = *memory;
}

std::optional<VkDeviceSize> Ring::Take(VkDeviceSize bytes, uint64_t batch) {
  bytes = (bytes + 255) / 256 * 256;  // no device asks for more alignment
  if (taken_.empty()) head_ = 0;
  VkDeviceSize tail = taken_.empty() ? kSize : taken_.front().begin;
  bool wrapped = !taken_.empty() && head_ <= tail;  // what is free lies between head and tail, else outside them
  VkDeviceSize begin = head_;
  if (!wrapped && head_ + bytes > kSize) {
    if (taken_.empty() || bytes > tail) return std::nullopt;
    begin = 0;
  } else if (wrapped && head_ + bytes > tail) {
    return std::nullopt;
  }
  taken_.push_back({batch, begin});
  head_ = begin + bytes;
  return begin;
}

void Ring::Release(uint64_t batch) {
  while (!taken_.empty() && taken_.front().batch <= batch) taken_.pop_front();
}

}  // namespace vulkan
}  // namespace minicpm
