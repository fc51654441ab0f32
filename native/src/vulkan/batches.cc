#include "batches.h"

#include <algorithm>

namespace minicpm {
namespace vulkan {
namespace {

constexpr uint32_t kPoolSets = 256, kPoolBuffers = 8 * kPoolSets;
constexpr VkPipelineStageFlags kStages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;

}  // namespace

Batches::Batches(const Gpu* gpu) : gpu_(gpu) {
  const DeviceFunctions& vk = gpu->vk;
  for (Slot& slot : slots_) {
    VkCommandPoolCreateInfo pool{VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
    pool.flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT;
    pool.queueFamilyIndex = gpu->family;
    Check(vk.vkCreateCommandPool(gpu->device, &pool, nullptr, &slot.pool), "creating a command pool");
    VkCommandBufferAllocateInfo commands{VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
    commands.commandPool = slot.pool;
    commands.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    commands.commandBufferCount = 1;
    Check(vk.vkAllocateCommandBuffers(gpu->device, &commands, &slot.commands), "allocating a command buffer");
    VkFenceCreateInfo fence{VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    Check(vk.vkCreateFence(gpu->device, &fence, nullptr, &slot.fence), "creating a fence");
  }
}

void Batches::Begin() {
  if (current_ > kSlots) WaitFor(current_ - kSlots);
  const DeviceFunctions& vk = gpu_->vk;
  Slot& slot = SlotOf(current_);
  Check(vk.vkResetCommandPool(gpu_->device, slot.pool, 0), "resetting a command pool");
  VkCommandBufferBeginInfo info{VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  info.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  Check(vk.vkBeginCommandBuffer(slot.commands, &info), "recording");
  open_ = true;
  commands_ = 0;
  if (!profile_) return;
  if (slot.queries == nullptr) {
    VkQueryPoolCreateInfo queries{VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO};
    queries.queryType = VK_QUERY_TYPE_TIMESTAMP;
    queries.queryCount = 2 * kLongest;
    Check(vk.vkCreateQueryPool(gpu_->device, &queries, nullptr, &slot.queries), "preparing to tell the time");
  }
  vk.vkCmdResetQueryPool(slot.commands, slot.queries, 0, 2 * kLongest);
}

VkCommandBuffer Batches::BeginCommand() {
  if (!open_) Begin();
  VkMemoryBarrier barrier{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                          VK_ACCESS_TRANSFER_WRITE_BIT;
  VkCommandBuffer commands = SlotOf(current_).commands;
  gpu_->vk.vkCmdPipelineBarrier(commands, kStages, kStages, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  return commands;
}

void Batches::EndCommand() {
  if (++commands_ == kLongest) Submit();
}

Batches::DescriptorPool Batches::NewPool() {
  VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, kPoolBuffers},
                                  {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, kPoolSets}};
  VkDescriptorPoolCreateInfo info{VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO};
  info.maxSets = kPoolSets;
  info.poolSizeCount = 2;
  info.pPoolSizes = sizes;
  DescriptorPool pool{nullptr, kPoolSets, kPoolBuffers};
  Check(gpu_->vk.vkCreateDescriptorPool(gpu_->device, &info, nullptr, &pool.pool), "creating a descriptor pool");
  return pool;
}

VkDescriptorSet Batches::NewSet(VkDescriptorSetLayout layout, uint32_t buffers) {
  Slot& slot = SlotOf(current_);
  bool full = slot.used_pools == 0;
  if (!full) {
    const DescriptorPool& last = slot.descriptors[slot.used_pools - 1];
    full = last.sets == 0 || last.buffers < buffers;
  }
  if (full && slot.used_pools == slot.descriptors.size()) slot.descriptors.push_back(NewPool());
  if (full) ++slot.used_pools;
  DescriptorPool& pool = slot.descriptors[slot.used_pools - 1];
  VkDescriptorSetAllocateInfo info{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO};
  info.descriptorPool = pool.pool;
  info.descriptorSetCount = 1;
  info.pSetLayouts = &layout;
  VkDescriptorSet set;
  Check(gpu_->vk.vkAllocateDescriptorSets(gpu_->device, &info, &set), "allocating a descriptor set");
  --pool.sets;
  pool.buffers -= buffers;
  return set;
}

void Batches::Submit() {
  if (!open_) return;
  const DeviceFunctions& vk = gpu_->vk;
  Slot& slot = SlotOf(current_);
  VkMemoryBarrier barrier{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_HOST_READ_BIT;
  vk.vkCmdPipelineBarrier(slot.commands, kStages, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  open_ = false;
  Check(vk.vkEndCommandBuffer(slot.commands), "recording");
  VkSubmitInfo info{VK_STRUCTURE_TYPE_SUBMIT_INFO};
  info.commandBufferCount = 1;
  info.pCommandBuffers = &slot.commands;
  Check(vk.vkQueueSubmit(gpu_->queue, 1, &info, slot.fence), "handing kernels to the device");
  ++submitted_;
  ++current_;
}

void Batches::WaitFor(uint64_t batch) {
  if (batch >= current_) Submit();
  for (; done_ < batch && done_ + 1 < current_; ++done_) {
    Slot& slot = SlotOf(done_ + 1);
    Check(gpu_->vk.vkWaitForFences(gpu_->device, 1, &slot.fence, VK_TRUE, UINT64_MAX), "waiting for the device");
    Finish(&slot);
  }
}

void Batches::Finish(Slot* slot) {
  const DeviceFunctions& vk = gpu_->vk;
  Check(vk.vkResetFences(gpu_->device, 1, &slot->fence), "resetting a fence");
  for (size_t i = 0; i < slot->used_pools; ++i) {
    DescriptorPool& pool = slot->descriptors[i];
    Check(vk.vkResetDescriptorPool(gpu_->device, pool.pool, 0), "resetting a descriptor pool");
    pool = {pool.pool, kPoolSets, kPoolBuffers};
  }
  slot->used_pools = 0;
  if (!slot->timed.empty()) ReadTimes(slot);
}

void Batches::Profile(bool on) {
  WaitFor(current_);
  profile_ = on && gpu_->timestamp_bits > 0;
}

void Batches::BeginTimed(const std::string& kernel) {
  Slot& slot = SlotOf(current_);
  if (!profile_) return;
  auto query = static_cast<uint32_t>(2 * slot.timed.size());
  gpu_->vk.vkCmdWriteTimestamp(slot.commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, slot.queries, query);
  slot.timed.push_back(kernel);
}

void Batches::EndTimed() {
  Slot& slot = SlotOf(current_);
  if (!profile_) return;
  auto query = static_cast<uint32_t>(2 * slot.timed.size() - 1);
  gpu_->vk.vkCmdWriteTimestamp(slot.commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, slot.queries, query);
}

void Batches::ReadTimes(Slot* slot) {
  auto count = static_cast<uint32_t>(2 * slot->timed.size());
  std::vector<uint64_t> ticks(count);
  Check(gpu_->vk.vkGetQueryPoolResults(gpu_->device, slot->queries, 0, count, count * sizeof(uint64_t), ticks.data(),
                                       sizeof(uint64_t), VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
        "reading the time");
  uint64_t mask = gpu_->timestamp_bits == 64 ? ~uint64_t{0} : (uint64_t{1} << gpu_->timestamp_bits) - 1;
  for (size_t i = 0; i < slot->timed.size(); ++i) {
    uint64_t elapsed = (ticks[2 * i + 1] - ticks[2 * i]) & mask;
    times_.emplace_back(slot->timed[i], static_cast<int64_t>(elapsed * gpu_->about.properties.limits.timestampPeriod));
  }
  slot->timed.clear();
}

}  // namespace vulkan
}  // namespace minicpm
