// Tensors' memory: parts of large blocks, as drivers allow few allocations and make each slowly.
#pragma once

#include <list>
#include <map>
#include <optional>

#include "gpu.h"

namespace minicpm {
namespace vulkan {

struct Block {
  Gpu::Memory memory;
  VkDeviceSize size;
  std::map<VkDeviceSize, VkDeviceSize> free;  // offset -> size of the free parts, none beside another

  bool empty() const { return free.size() == 1 && free.begin()->second == size; }
};

struct Part {
  Block* block;
  VkDeviceSize offset, size;
};

class Heap {
 public:
  explicit Heap(const Gpu* gpu);

  // Nothing when the device has no room.
  std::optional<Part> Allocate(VkDeviceSize bytes);
  void Free(const Part& part);

  VkDeviceSize used() const { return used_; }
  VkDeviceSize reserved() const { return reserved_; }
  size_t blocks() const { return blocks_.size(); }

 private:
  std::optional<Part> Take(VkDeviceSize bytes);
  bool Grow(VkDeviceSize bytes);

  const Gpu* gpu_;
  VkDeviceSize block_size_, used_ = 0, reserved_ = 0;
  std::list<Block> blocks_;
};

}  // namespace vulkan
}  // namespace minicpm
