#include "gpu.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>

namespace minicpm {
namespace vulkan {
namespace {

constexpr VkMemoryPropertyFlags kLocal = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
constexpr VkMemoryPropertyFlags kMapped = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
constexpr VkMemoryPropertyFlags kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;

// SPIR-V's numbers of the capabilities that a device may lack.
enum Capability : uint32_t {
  kFloat16 = 9,
  kFloat64 = 10,
  kInt64 = 11,
  kInt16 = 22,
  kInt8 = 39,
  kStorage16 = 4433,
  kStorage8 = 4448,
  kDotOfBytes = 6018,
  kDot = 6019
};

// Asked for by name, since Vulkan 1.1 is all that the instance was made for.
std::vector<const char*> Extensions(const InstanceFunctions& vk, VkPhysicalDevice device) {
  std::vector<const char*> wanted;
  auto there = Listed<VkExtensionProperties>([&](uint32_t* count, VkExtensionProperties* found) {
    vk.vkEnumerateDeviceExtensionProperties(device, nullptr, count, found);
  });
  for (const char* name : {VK_KHR_8BIT_STORAGE_EXTENSION_NAME, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME,
                           VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME,
                           VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME,
                           "VK_KHR_portability_subset"}) {
    auto same = [&](const VkExtensionProperties& extension) { return std::strcmp(extension.extensionName, name) == 0; };
    if (std::any_of(there.begin(), there.end(), same)) wanted.push_back(name);
  }
  return wanted;
}

bool Has(const std::vector<const char*>& extensions, const char* name) {
  auto same = [&](const char* extension) { return std::strcmp(extension, name) == 0; };
  return std::any_of(extensions.begin(), extensions.end(), same);
}

// The features that kernels use, chained as Vulkan wants them both for asking and for enabling.
struct Features {
  VkPhysicalDeviceFeatures2 core{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
  VkPhysicalDevice16BitStorageFeatures storage16{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES};
  VkPhysicalDevice8BitStorageFeaturesKHR storage8{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES_KHR};
  VkPhysicalDeviceShaderFloat16Int8FeaturesKHR small{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES_KHR};
  VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dot{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR};

  explicit Features(const std::vector<const char*>& extensions) {
    core.pNext = &storage16;
    void** end = &storage16.pNext;
    if (Has(extensions, VK_KHR_8BIT_STORAGE_EXTENSION_NAME)) {
      *end = &storage8;
      end = &storage8.pNext;
    }
    if (Has(extensions, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME)) {
      *end = &small;
      end = &small.pNext;
    }
    if (Has(extensions, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME)) *end = &dot;
  }
  Features(const Features&) = delete;

  void KeepWhatKernelsUse() {
    VkPhysicalDeviceFeatures all = core.features;
    core.features = {};
    core.features.shaderInt64 = all.shaderInt64;
    core.features.shaderInt16 = all.shaderInt16;
    core.features.shaderFloat64 = all.shaderFloat64;
    storage16.uniformAndStorageBuffer16BitAccess = storage16.storagePushConstant16 = storage16.storageInputOutput16 =
        VK_FALSE;
    storage8.uniformAndStorageBuffer8BitAccess = storage8.storagePushConstant8 = VK_FALSE;
  }

  std::set<uint32_t> Capabilities() const {
    std::set<uint32_t> found;
    if (core.features.shaderInt64) found.insert(kInt64);
    if (core.features.shaderInt16) found.insert(kInt16);
    if (core.features.shaderFloat64) found.insert(kFloat64);
    if (storage16.storageBuffer16BitAccess) found.insert(kStorage16);
    if (storage8.storageBuffer8BitAccess) found.insert(kStorage8);
    if (small.shaderFloat16) found.insert(kFloat16);
    if (small.shaderInt8) found.insert(kInt8);
    if (dot.shaderIntegerDotProduct) found.insert({kDotOfBytes, kDot});
    return found;
  }
};

}  // namespace

bool Description::unified() const {
  return properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ||
         properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

uint32_t Description::main_heap() const {
  uint32_t largest = 0;
  auto size = [&](uint32_t i) {
    bool own = memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT;
    return own ? memory.memoryHeaps[i].size : 0;
  };
  for (uint32_t i = 1; i < memory.memoryHeapCount; ++i) largest = size(i) > size(largest) ? i : largest;
  return largest;
}

uint64_t Description::memory_size() const { return memory.memoryHeaps[main_heap()].size; }

Description Describe(const Driver& driver, VkPhysicalDevice device) {
  const InstanceFunctions& vk = driver.functions;
  VkPhysicalDeviceDriverPropertiesKHR about{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES_KHR};
  VkPhysicalDeviceProperties2 properties{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
  std::vector<const char*> extensions = Extensions(vk, device);
  bool tells = Has(extensions, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME);
  if (tells) properties.pNext = &about;
  vk.vkGetPhysicalDeviceProperties2(device, &properties);
  Description found;
  found.properties = properties.properties;
  found.name = properties.properties.deviceName;
  found.driver = tells ? std::string(about.driverName) + " " + about.driverInfo
                       : std::to_string(properties.properties.driverVersion);
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  VkPhysicalDeviceMemoryProperties2 memory{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  bool counts = Has(extensions, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  if (counts) memory.pNext = &budget;
  vk.vkGetPhysicalDeviceMemoryProperties2(device, &memory);
  found.memory = memory.memoryProperties;
  uint32_t heap = found.main_heap();
  if (counts) found.free = budget.heapBudget[heap] - std::min(budget.heapBudget[heap], budget.heapUsage[heap]);
  return found;
}

Gpu::Gpu(const Driver& driver, VkPhysicalDevice physical, bool staging) : about(Describe(driver, physical)) {
  Open(driver, physical);
#define MINICPM_FIND(name) vk.name = reinterpret_cast<PFN_##name>(driver.functions.vkGetDeviceProcAddr(device, #name));
  MINICPM_VULKAN_DEVICE_FUNCTIONS(MINICPM_FIND)
#undef MINICPM_FIND
  vk.vkGetDeviceQueue(device, family, 0, &queue);
  ChooseMemory(staging);
}

void Gpu::Open(const Driver& driver, VkPhysicalDevice physical) {
  const InstanceFunctions& functions = driver.functions;
  std::vector<const char*> extensions = Extensions(functions, physical);
  Features features(extensions);
  functions.vkGetPhysicalDeviceFeatures2(physical, &features.core);
  features.KeepWhatKernelsUse();
  capabilities = features.Capabilities();

  family = static_cast<uint32_t>(ComputeFamily(functions, physical));
  timestamp_bits = Listed<VkQueueFamilyProperties>([&](uint32_t* count, VkQueueFamilyProperties* found) {
                     functions.vkGetPhysicalDeviceQueueFamilyProperties(physical, count, found);
                   })[family]
                       .timestampValidBits;
  float priority = 1;
  VkDeviceQueueCreateInfo queues{VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO};
  queues.queueFamilyIndex = family;
  queues.queueCount = 1;
  queues.pQueuePriorities = &priority;
  VkDeviceCreateInfo info{VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO};
  info.pNext = &features.core;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queues;
  info.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  Check(functions.vkCreateDevice(physical, &info, nullptr, &device), "opening the device");
}

std::optional<MemoryType> Gpu::FindType(uint32_t allowed, VkMemoryPropertyFlags with,
                                        VkMemoryPropertyFlags without) const {
  for (uint32_t i = 0; i < about.memory.memoryTypeCount; ++i) {
    const VkMemoryType& type = about.memory.memoryTypes[i];
    VkMemoryPropertyFlags flags = type.propertyFlags;
    if (!(allowed >> i & 1) || (flags & with) != with || (flags & without) != 0) continue;
    bool writable = (flags & kMapped) == kMapped;
    return MemoryType{i, about.memory.memoryHeaps[type.heapIndex].size, writable, writable && (flags & kCached) != 0};
  }
  return std::nullopt;
}

// Where host and device share their memory, tensors are mapped. Where they don't, even memory that can be mapped is
// slow to read: tensors go to the device's own, and copies through a buffer of the host's.
void Gpu::ChooseMemory(bool staging) {
  VkBufferCreateInfo info{VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
  info.size = 1 << 16;
  info.usage = kTensorUsage | kStagingUsage;
  VkBuffer probe;
  Check(vk.vkCreateBuffer(device, &info, nullptr, &probe), "creating a buffer");
  VkMemoryRequirements needs;
  vk.vkGetBufferMemoryRequirements(device, probe, &needs);
  vk.vkDestroyBuffer(device, probe, nullptr);
  uint32_t allowed = needs.memoryTypeBits;

  auto first = [&](std::vector<std::pair<VkMemoryPropertyFlags, VkMemoryPropertyFlags>> choices) {
    std::optional<MemoryType> found;
    for (auto [with, without] : choices) {
      if (!found) found = FindType(allowed, with, without);
    }
    if (!found)
      TVM_FFI_THROW(RuntimeError) << "Vulkan: " << about.name << " has no memory for buffers; install a newer driver";
    return *found;
  };
  constexpr VkMemoryPropertyFlags kHidden = VK_MEMORY_PROPERTY_PROTECTED_BIT;
  host = first({{kMapped | kCached, kLocal | kHidden}, {kMapped | kCached, kHidden}, {kMapped, kHidden}});
  if (about.unified()) {
    tensors =
        first({{kLocal | kMapped | kCached, kHidden}, {kLocal | kMapped, kHidden}, {kLocal, kHidden}, {0, kHidden}});
  } else {
    tensors = first({{kLocal, kHidden | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT}, {kLocal, kHidden}, {0, kHidden}});
  }
  if (staging || !about.unified()) tensors.writable = tensors.readable = false;
}

std::optional<Gpu::Memory> Gpu::Allocate(VkDeviceSize bytes, VkBufferUsageFlags usage, const MemoryType& type) const {
  if (bytes > type.heap_size) return std::nullopt;
  VkBufferCreateInfo buffer{VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
  buffer.size = bytes;
  buffer.usage = usage;
  Memory memory;
  Check(vk.vkCreateBuffer(device, &buffer, nullptr, &memory.buffer), "creating a buffer");
  VkMemoryRequirements needs;
  vk.vkGetBufferMemoryRequirements(device, memory.buffer, &needs);
  VkMemoryAllocateInfo info{VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO};
  info.allocationSize = needs.size;
  info.memoryTypeIndex = type.index;
  if (vk.vkAllocateMemory(device, &info, nullptr, &memory.memory) < 0) {
    vk.vkDestroyBuffer(device, memory.buffer, nullptr);
    return std::nullopt;
  }
  Check(vk.vkBindBufferMemory(device, memory.buffer, memory.memory, 0), "binding memory");
  if (type.writable) {
    void* mapped;
    Check(vk.vkMapMemory(device, memory.memory, 0, VK_WHOLE_SIZE, 0, &mapped), "mapping memory");
    memory.mapped = static_cast<char*>(mapped);
  }
  return memory;
}

void Gpu::Free(const Memory& memory) const {
  vk.vkDestroyBuffer(device, memory.buffer, nullptr);
  vk.vkFreeMemory(device, memory.memory, nullptr);
}

}  // namespace vulkan
}  // namespace minicpm
