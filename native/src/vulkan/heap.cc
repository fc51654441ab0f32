#include "heap.h"

#include <algorithm>
#include <iterator>

namespace minicpm {
namespace vulkan {
namespace {

constexpr VkDeviceSize kAlignment = 256;  // Vulkan allows no device to ask for more
constexpr VkDeviceSize kBlock = 64 << 20;

VkDeviceSize Aligned(VkDeviceSize bytes) {
  return (std::max<VkDeviceSize>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Heap::Heap(const Gpu* gpu) : gpu_(gpu), block_size_(std::min(kBlock, Aligned(gpu->tensors.heap_size / 16))) {}

std::optional<Part> Heap::Allocate(VkDeviceSize bytes) {
  if (bytes > gpu_->tensors.heap_size) return std::nullopt;
  bytes = Aligned(bytes);
  std::optional<Part> part = Take(bytes);
  if (!part && Grow(bytes)) part = Take(bytes);
  if (part) used_ += part->size;
  return part;
}

// The smallest free part that is large enough.
std::optional<Part> Heap::Take(VkDeviceSize bytes) {
  std::optional<Part> best;
  for (Block& block : blocks_) {
    for (auto [offset, size] : block.free) {
      if (size >= bytes && (!best || size < best->size)) best = Part{&block, offset, size};
    }
  }
  if (!best) return best;
  best->block->free.erase(best->offset);
  if (best->size > bytes) best->block->free[best->offset + bytes] = best->size - bytes;
  best->size = bytes;
  return best;
}

// A large tensor has a block of its own; a full device may still have room for a smaller block than usual.
bool Heap::Grow(VkDeviceSize bytes) {
  VkDeviceSize size = bytes > block_size_ / 2 ? bytes : block_size_;
  std::optional<Gpu::Memory> memory = gpu_->Allocate(size, kTensorUsage, gpu_->tensors);
  if (!memory && size > bytes) memory = gpu_->Allocate(size = bytes, kTensorUsage, gpu_->tensors);
  if (!memory) return false;
  blocks_.push_back(Block{*memory, size, {{0, size}}});
  reserved_ += size;
  return true;
}

void Heap::Free(const Part& part) {
  used_ -= part.size;
  auto& free = part.block->free;
  auto here = free.emplace(part.offset, part.size).first;
  auto next = std::next(here);
  if (next != free.end() && here->first + here->second == next->first) {
    here->second += next->second;
    free.erase(next);
  }
  if (here != free.begin()) {
    auto before = std::prev(here);
    if (before->first + before->second == here->first) {
      before->second += here->second;
      free.erase(here);
    }
  }
  if (!part.block->empty()) return;
  // One empty block is kept for the next tensor, unless it was a large tensor's own.
  auto spare = [&](const Block& block) { return block.empty() && block.size == block_size_ && &block != part.block; };
  if (part.block->size == block_size_ && std::none_of(blocks_.begin(), blocks_.end(), spare)) return;
  gpu_->Free(part.block->memory);
  reserved_ -= part.block->size;
  blocks_.remove_if([&](const Block& block) { return &block == part.block; });
}

}  // namespace vulkan
}  // namespace minicpm
