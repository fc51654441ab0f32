// A device at work: its memory, copies and launches, in the order of the calls, from any thread.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "batches.h"
#include "heap.h"
#include "pipelines.h"
#include "ring.h"

namespace minicpm {
namespace vulkan {

// What TVM sees as a device pointer.
struct Buffer {
  Part part;
  VkDeviceSize size;
  uint64_t last_batch;  // that uses it
};

// Commands run one after another, each seeing what those before it wrote; launches and copies to the device return
// before they are done. All methods throw RuntimeError when the device is lost, and in a process that was forked off.
class Device {
 public:
  struct Counters {
    uint64_t submissions, launches, blocks, used, reserved;
  };

  Device(const Driver& driver, VkPhysicalDevice device, bool staging);

  Buffer* Allocate(size_t bytes);
  void Free(Buffer* buffer) noexcept;
  void Write(Buffer* to, size_t offset, const void* from, size_t bytes);
  void Read(const Buffer* from, size_t offset, void* to, size_t bytes);
  void Copy(Buffer* from, size_t from_offset, Buffer* to, size_t to_offset, size_t bytes);
  // Waits for all launches.
  void Wait();

  Kernel Build(const KernelInfo& info, const Shader& shader);
  void Destroy(const Kernel& kernel) noexcept;
  // `buffers` and `scalars` are as many as the kernel has.
  void Launch(Kernel* kernel, Buffer* const* buffers, const uint64_t* scalars, const Grid& grid);

  void Profile(bool on);
  std::vector<std::pair<std::string, int64_t>> TakeTimes();
  Counters counters();
  uint64_t available();  // bytes of its memory that no tensor has

 private:
  // Locked for the time of a command.
  class Turn;

  void WaitFor(uint64_t batch);
  VkDeviceSize Stage(VkDeviceSize bytes);
  void WriteStaged(Buffer* to, size_t offset, const char* from, size_t bytes);
  void ReadStaged(const Buffer* from, size_t offset, char* to, size_t bytes);
  void CopyBuffer(VkBuffer from, VkDeviceSize from_offset, VkBuffer to, VkDeviceSize to_offset, VkDeviceSize bytes);
  VkDescriptorSet Bind(const Kernel& kernel, Buffer* const* buffers, VkDeviceSize scalars);
  std::array<uint32_t, 3> Workgroups(const Kernel& kernel, const Grid& grid) const;

  std::mutex mutex_;
  Gpu gpu_;
  Heap heap_;
  Batches batches_;
  Pipelines pipelines_;
  std::unique_ptr<Ring> ring_;                   // made when first needed
  std::deque<std::pair<uint64_t, Part>> freed_;  // until the batch is done
  uint64_t launches_ = 0, last_work_ = 0,
           built_ = 0;  // batches: of the last command but writes; of the last new kernel
};

}  // namespace vulkan
}  // namespace minicpm
