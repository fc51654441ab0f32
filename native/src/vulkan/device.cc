#include "device.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#ifndef _WIN32
#include <pthread.h>
#endif

namespace minicpm {
namespace vulkan {
namespace {

constexpr VkDeviceSize kStagedPart = Ring::kSize / 4;  // of a large copy

// A driver survives neither a fork nor, in some cases, the end of main: nothing is asked of it any more.
std::atomic<bool> forked{false}, ending{false};

void WatchProcess() {
  static const bool once = [] {
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
    std::atexit([] { ending = true; });
    return true;
  }();
  (void)once;
}

std::string MiB(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

class Device::Turn {
 public:
  explicit Turn(Device* device) : lock_(device->mutex_, std::defer_lock) {
    if (forked) {
      TVM_FFI_THROW(RuntimeError)
          << "Vulkan was used before this process was forked off, and does not work here; start "
             "it with multiprocessing's \"spawn\"";
    }
    lock_.lock();
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

Device::Device(const Driver& driver, VkPhysicalDevice device, bool staging)
    : gpu_(driver, device, staging), heap_(&gpu_), batches_(&gpu_), pipelines_(&gpu_) {
  WatchProcess();
}

void Device::WaitFor(uint64_t batch) {
  batches_.WaitFor(batch);
  if (ring_) ring_->Release(batches_.done());
  while (!freed_.empty() && freed_.front().first <= batches_.done()) {
    heap_.Free(freed_.front().second);
    freed_.pop_front();
  }
  if (pipelines_.changed() && batches_.done() > built_) pipelines_.Save();  // once a batch brings no new kernels
}

Buffer* Device::Allocate(size_t bytes) {
  Turn turn(this);
  uint64_t most = gpu_.about.properties.limits.maxStorageBufferRange;
  if (bytes > most) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: allocating a buffer of " << MiB(bytes) << " failed: kernels on "
                                << gpu_.about.name << " reach " << MiB(most)
                                << " of one; use a smaller --context or model";
  }
  std::optional<Part> part = heap_.Allocate(bytes);
  if (!part && !freed_.empty()) {
    WaitFor(batches_.current());
    part = heap_.Allocate(bytes);
  }
  if (!part) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: allocating a buffer of " << MiB(bytes) << " failed: out of memory, "
                                << MiB(heap_.used()) << " of " << gpu_.about.name << "'s "
                                << MiB(gpu_.tensors.heap_size) << " are taken here; use a smaller --context";
  }
  return new Buffer{*part, bytes, 0};
}

void Device::Free(Buffer* buffer) noexcept {
  if (forked || ending) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (buffer->last_batch > batches_.done()) {
    uint64_t before = freed_.empty() ? 0 : freed_.back().first;
    freed_.emplace_back(std::max(before, buffer->last_batch), buffer->part);
  } else {
    heap_.Free(buffer->part);
  }
  delete buffer;
}

void Device::Write(Buffer* to, size_t offset, const void* from, size_t bytes) {
  Turn turn(this);
  if (!gpu_.tensors.writable) return WriteStaged(to, offset, static_cast<const char*>(from), bytes);
  WaitFor(to->last_batch);
  std::memcpy(to->part.block->memory.mapped + to->part.offset + offset, from, bytes);
}

void Device::Read(const Buffer* from, size_t offset, void* to, size_t bytes) {
  Turn turn(this);
  if (!gpu_.tensors.readable) return ReadStaged(from, offset, static_cast<char*>(to), bytes);
  WaitFor(from->last_batch);
  std::memcpy(to, from->part.block->memory.mapped + from->part.offset + offset, bytes);
}

// Room in the ring for the current batch.
VkDeviceSize Device::Stage(VkDeviceSize bytes) {
  if (!ring_) ring_ = std::make_unique<Ring>(gpu_);
  for (;;) {
    if (std::optional<VkDeviceSize> offset = ring_->Take(bytes, batches_.current())) return *offset;
    WaitFor(batches_.done() + 1);
  }
}

void Device::CopyBuffer(VkBuffer from, VkDeviceSize from_offset, VkBuffer to, VkDeviceSize to_offset,
                        VkDeviceSize bytes) {
  VkBufferCopy region{from_offset, to_offset, bytes};
  gpu_.vk.vkCmdCopyBuffer(batches_.BeginCommand(), from, to, 1, &region);
  batches_.EndCommand();
}

void Device::WriteStaged(Buffer* to, size_t offset, const char* from, size_t bytes) {
  for (size_t done = 0, count; done < bytes; done += count) {
    count = std::min<size_t>(bytes - done, kStagedPart);
    VkDeviceSize staged = Stage(count);
    std::memcpy(ring_->at(staged), from + done, count);
    to->last_batch = batches_.current();
    CopyBuffer(ring_->buffer(), staged, to->part.block->memory.buffer, to->part.offset + offset + done, count);
    if (count == kStagedPart) batches_.Submit();  // the device copies it while the next part is made ready
  }
}

void Device::ReadStaged(const Buffer* from, size_t offset, char* to, size_t bytes) {
  for (size_t done = 0, count; done < bytes; done += count) {
    count = std::min<size_t>(bytes - done, kStagedPart);
    VkDeviceSize staged = Stage(count);
    uint64_t batch = batches_.current();
    CopyBuffer(from->part.block->memory.buffer, from->part.offset + offset + done, ring_->buffer(), staged, count);
    WaitFor(batch);
    std::memcpy(to + done, ring_->at(staged), count);
  }
}

void Device::Copy(Buffer* from, size_t from_offset, Buffer* to, size_t to_offset, size_t bytes) {
  Turn turn(this);
  last_work_ = from->last_batch = to->last_batch = batches_.current();
  CopyBuffer(from->part.block->memory.buffer, from->part.offset + from_offset, to->part.block->memory.buffer,
             to->part.offset + to_offset, bytes);
}

// Writes alone are not waited for: they go with the launches that need them, as one submission.
void Device::Wait() {
  Turn turn(this);
  WaitFor(last_work_);
}

Kernel Device::Build(const KernelInfo& info, const Shader& shader) {
  Turn turn(this);
  built_ = batches_.current();
  return pipelines_.Build(info, shader);
}

void Device::Destroy(const Kernel& kernel) noexcept {
  if (forked || ending) return;
  std::lock_guard<std::mutex> lock(mutex_);
  try {
    WaitFor(kernel.last_batch);
  } catch (...) {
    return;  // the device is lost
  }
  pipelines_.Destroy(kernel);
}

// A long row of workgroups is folded into several: kernels with one block index count their workgroups in both
// dimensions, and the last ones beyond the extent return at once.
std::array<uint32_t, 3> Device::Workgroups(const Kernel& kernel, const Grid& grid) const {
  const VkPhysicalDeviceLimits& limits = gpu_.about.properties.limits;
  size_t threads = grid.threads[0] * grid.threads[1] * grid.threads[2];
  if (threads > limits.maxComputeWorkGroupInvocations) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << kernel.name << " has workgroups of " << threads << " threads, "
                                << gpu_.about.name << " runs " << limits.maxComputeWorkGroupInvocations
                                << "; compile the bundle for another device";
  }
  std::array<size_t, 3> blocks = grid.blocks;
  size_t widest = limits.maxComputeWorkGroupCount[0];
  if (kernel.one_dimensional && blocks[0] > widest) {
    blocks[1] = (blocks[0] + widest - 1) / widest;
    blocks[0] = (blocks[0] + blocks[1] - 1) / blocks[1];
  }
  std::array<uint32_t, 3> groups;
  for (int i = 0; i < 3; ++i) {
    if (blocks[i] > limits.maxComputeWorkGroupCount[i]) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << kernel.name << " needs " << blocks[i] << " workgroups, "
                                  << gpu_.about.name << " runs " << limits.maxComputeWorkGroupCount[i]
                                  << " at once; compile the bundle with a smaller --prefill-chunk";
    }
    groups[i] = static_cast<uint32_t>(blocks[i]);
  }
  return groups;
}

VkDescriptorSet Device::Bind(const Kernel& kernel, Buffer* const* buffers, VkDeviceSize scalars) {
  std::array<VkDescriptorBufferInfo, Pipelines::kMostBuffers> places;
  for (uint32_t i = 0; i < kernel.buffers; ++i) {
    const Part& part = buffers[i]->part;
    VkDeviceSize range = std::max<VkDeviceSize>((buffers[i]->size + 3) / 4 * 4, 4);
    places[i] = {part.block->memory.buffer, part.offset, range};
    buffers[i]->last_batch = batches_.current();
  }
  VkDescriptorBufferInfo uniform{ring_ ? ring_->buffer() : nullptr, scalars, kernel.scalars * sizeof(uint64_t)};
  VkDescriptorSet set = batches_.NewSet(kernel.set, kernel.buffers);
  VkWriteDescriptorSet writes[2]{{VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET}, {VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET}};
  writes[0].dstSet = writes[1].dstSet = set;
  writes[0].descriptorCount = kernel.buffers;  // one write goes on to the next bindings
  writes[0].descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
  writes[0].pBufferInfo = places.data();
  writes[1].dstBinding = kernel.buffers;
  writes[1].descriptorCount = 1;
  writes[1].descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
  writes[1].pBufferInfo = &uniform;
  gpu_.vk.vkUpdateDescriptorSets(gpu_.device, kernel.uniform ? 2 : 1, writes, 0, nullptr);
  return set;
}

void Device::Launch(Kernel* kernel, Buffer* const* buffers, const uint64_t* scalars, const Grid& grid) {
  Turn turn(this);
  std::array<uint32_t, 3> groups = Workgroups(*kernel, grid);
  VkDeviceSize size = kernel->scalars * sizeof(uint64_t), staged = 0;
  if (kernel->uniform) {
    staged = Stage(size);
    std::memcpy(ring_->at(staged), scalars, size);
  }
  const DeviceFunctions& vk = gpu_.vk;
  VkCommandBuffer commands = batches_.BeginCommand();
  VkDescriptorSet set = Bind(*kernel, buffers, staged);
  vk.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, kernel->pipeline);
  vk.vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, kernel->layout, 0, 1, &set, 0, nullptr);
  if (size > 0 && !kernel->uniform) {
    vk.vkCmdPushConstants(commands, kernel->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, static_cast<uint32_t>(size),
                          scalars);
  }
  batches_.BeginTimed(kernel->name);
  vk.vkCmdDispatch(commands, groups[0], groups[1], groups[2]);
  batches_.EndTimed();
  kernel->last_batch = last_work_ = batches_.current();
  ++launches_;
  batches_.EndCommand();
}

void Device::Profile(bool on) {
  Turn turn(this);
  batches_.Profile(on);
}

std::vector<std::pair<std::string, int64_t>> Device::TakeTimes() {
  Turn turn(this);
  return batches_.TakeTimes();
}

Device::Counters Device::counters() {
  Turn turn(this);
  return {batches_.submissions(), launches_, heap_.blocks(), heap_.used(), heap_.reserved()};
}

uint64_t Device::available() {
  Turn turn(this);
  return gpu_.tensors.heap_size - std::min<uint64_t>(gpu_.tensors.heap_size, heap_.used());
}

}  // namespace vulkan
}  // namespace minicpm
