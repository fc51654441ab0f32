// Commands are recorded into a batch, which the device gets as one submission.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "gpu.h"

namespace minicpm {
namespace vulkan {

// Batches have numbers, counted from 1. Not thread-safe.
class Batches {
 public:
  // `gpu` must stay where it is.
  explicit Batches(const Gpu* gpu);

  // The batch being recorded, or the one that the next command will begin.
  uint64_t current() const { return current_; }
  // All batches up to this one are done.
  uint64_t done() const { return done_; }
  uint64_t submissions() const { return submitted_; }

  // Begins a command that comes after all others: what they wrote is there for it.
  VkCommandBuffer BeginCommand();
  // Submits a batch that has become long.
  void EndCommand();
  // For the command: a descriptor set with `buffers` storage buffers and at most one uniform buffer.
  VkDescriptorSet NewSet(VkDescriptorSetLayout layout, uint32_t buffers);
  // Hands the batch to the device, if any command was recorded.
  void Submit();
  // Submits it first where need be. Throws RuntimeError when the device is lost.
  void WaitFor(uint64_t batch);

  // Waits for all batches; while it is on, kernels are timed.
  void Profile(bool on);
  // Around a kernel, inside its command.
  void BeginTimed(const std::string& kernel);
  void EndTimed();
  // Nanoseconds of each kernel since it was turned on, once their batches are done.
  std::vector<std::pair<std::string, int64_t>> TakeTimes() { return std::exchange(times_, {}); }

 private:
  static constexpr int kSlots = 4;
  static constexpr uint32_t kLongest = 2048;  // commands of a batch: more than a decode step has

  struct DescriptorPool {
    VkDescriptorPool pool;
    uint32_t sets, buffers;  // that are left
  };
  struct Slot {
    VkCommandPool pool;
    VkCommandBuffer commands;
    VkFence fence;
    std::vector<DescriptorPool> descriptors;
    size_t used_pools = 0;
    VkQueryPool queries = nullptr;
    std::vector<std::string> timed;
  };

  Slot& SlotOf(uint64_t batch) { return slots_[batch % kSlots]; }
  void Begin();
  void Finish(Slot* slot);
  void ReadTimes(Slot* slot);
  DescriptorPool NewPool();

  const Gpu* gpu_;
  std::array<Slot, kSlots> slots_;
  uint64_t current_ = 1, done_ = 0, submitted_ = 0;
  uint32_t commands_ = 0;  // of the current batch
  bool open_ = false, profile_ = false;
  std::vector<std::pair<std::string, int64_t>> times_;
};

}  // namespace vulkan
}  // namespace minicpm
