// One device, opened: its functions, queue, limits, features and kinds of memory.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "driver.h"

namespace minicpm {
namespace vulkan {

// What a device is, known before it is opened.
struct Description {
  std::string name, driver;
  VkPhysicalDeviceProperties properties;
  VkPhysicalDeviceMemoryProperties memory;

  std::optional<uint64_t> free;  // bytes of memory_size() that no program has taken, where the driver tells

  bool unified() const;  // shares the host's memory
  uint64_t memory_size() const;
  uint32_t main_heap() const;  // the largest of the device's own
};

Description Describe(const Driver& driver, VkPhysicalDevice device);

// A kind of memory: the index that Vulkan knows it by, and what the host may do with it.
struct MemoryType {
  uint32_t index = 0;
  uint64_t heap_size = 0;
  bool writable = false;  // mapped, and writes are seen without a flush
  bool readable = false;  // cached too: reads are fast
};

class Gpu {
 public:
  // Throws RuntimeError when the driver refuses. With `staging`, the host maps no tensor's memory.
  Gpu(const Driver& driver, VkPhysicalDevice device, bool staging);

  Description about;
  DeviceFunctions vk;
  VkDevice device = nullptr;
  VkQueue queue = nullptr;
  uint32_t family = 0;
  uint32_t timestamp_bits = 0;      // 0: it can't tell the time
  std::set<uint32_t> capabilities;  // of SPIR-V, beyond those that every device has
  MemoryType tensors, host;         // `host` is for copies: always writable

  // A buffer and memory of its own, mapped where the host may write; out of memory is no error but no buffer.
  struct Memory {
    VkBuffer buffer = nullptr;
    VkDeviceMemory memory = nullptr;
    char* mapped = nullptr;
  };
  std::optional<Memory> Allocate(VkDeviceSize bytes, VkBufferUsageFlags usage, const MemoryType& type) const;
  void Free(const Memory& memory) const;

 private:
  void Open(const Driver& driver, VkPhysicalDevice physical);
  void ChooseMemory(bool staging);
  std::optional<MemoryType> FindType(uint32_t allowed, VkMemoryPropertyFlags with, VkMemoryPropertyFlags without) const;
};

constexpr VkBufferUsageFlags kTensorUsage =
    VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
constexpr VkBufferUsageFlags kStagingUsage =
    VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;

}  // namespace vulkan
}  // namespace minicpm
