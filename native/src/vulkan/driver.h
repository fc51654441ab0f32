// The functions of the system's Vulkan library, opened when first used.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include <vector>

#define MINICPM_VULKAN_INSTANCE_FUNCTIONS(F)                                                                  \
  F(vkEnumeratePhysicalDevices) F(vkGetPhysicalDeviceProperties2) F(vkGetPhysicalDeviceFeatures2)             \
  F(vkGetPhysicalDeviceMemoryProperties2) F(vkGetPhysicalDeviceQueueFamilyProperties)                         \
  F(vkEnumerateDeviceExtensionProperties) F(vkCreateDevice) F(vkGetDeviceProcAddr)

#define MINICPM_VULKAN_DEVICE_FUNCTIONS(F)                                                                    \
  F(vkGetDeviceQueue) F(vkAllocateMemory) F(vkFreeMemory) F(vkMapMemory) F(vkCreateBuffer)                    \
  F(vkDestroyBuffer) F(vkGetBufferMemoryRequirements) F(vkBindBufferMemory) F(vkCreateCommandPool)            \
  F(vkResetCommandPool) F(vkAllocateCommandBuffers) F(vkBeginCommandBuffer) F(vkEndCommandBuffer)             \
  F(vkCreateFence) F(vkResetFences) F(vkWaitForFences) F(vkQueueSubmit) F(vkCreateShaderModule)               \
  F(vkDestroyShaderModule) F(vkCreateDescriptorSetLayout) F(vkDestroyDescriptorSetLayout)                     \
  F(vkCreatePipelineLayout) F(vkDestroyPipelineLayout) F(vkCreateComputePipelines) F(vkDestroyPipeline)       \
  F(vkCreatePipelineCache) F(vkGetPipelineCacheData) F(vkCreateDescriptorPool) F(vkResetDescriptorPool)       \
  F(vkAllocateDescriptorSets) F(vkUpdateDescriptorSets) F(vkCreateQueryPool) F(vkGetQueryPoolResults)         \
  F(vkCmdBindPipeline) F(vkCmdBindDescriptorSets) F(vkCmdPushConstants) F(vkCmdDispatch) F(vkCmdCopyBuffer)   \
  F(vkCmdPipelineBarrier) F(vkCmdResetQueryPool) F(vkCmdWriteTimestamp)

namespace minicpm {
namespace vulkan {

#define MINICPM_DECLARE(name) PFN_##name name = nullptr;
struct InstanceFunctions {
  MINICPM_VULKAN_INSTANCE_FUNCTIONS(MINICPM_DECLARE)
};

struct DeviceFunctions {
  MINICPM_VULKAN_DEVICE_FUNCTIONS(MINICPM_DECLARE)
};
#undef MINICPM_DECLARE

struct Driver {
  InstanceFunctions functions;
  // Those that can compute with Vulkan 1.1; GPUs come first, so that device 0 is what a user means.
  std::vector<VkPhysicalDevice> devices;
};

// Makes an instance, through Vulkan's loader or, where there is none, one driver. No devices where both are missing.
// The environment's MINICPM_VULKAN_LIBRARY names another library to go through.
Driver OpenDriver();

// The queue family that kernels run in, or -1.
int ComputeFamily(const InstanceFunctions& vk, VkPhysicalDevice device);

// Throws RuntimeError with Vulkan's error, what failed and, where there is one, a remedy.
void Check(VkResult result, const char* what);

// Two calls that tell how many there are, then which.
template <typename T, typename List>
std::vector<T> Listed(List list) {
  uint32_t count = 0;
  list(&count, nullptr);
  std::vector<T> found(count);
  list(&count, found.data());
  found.resize(count);
  return found;
}

}  // namespace vulkan
}  // namespace minicpm
