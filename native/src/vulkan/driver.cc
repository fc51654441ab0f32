#include "driver.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../common/shared_library.h"

namespace minicpm {
namespace vulkan {
namespace {

// Loaders first, then drivers: those can be asked directly.
constexpr const char* kLibraries[] = {
#if defined(_WIN32)
    "vulkan-1.dll",
#elif defined(__APPLE__)
    "libvulkan.1.dylib",
    "libMoltenVK.dylib",
#else
    "libvulkan.so.1",      "libvulkan.so",       "libGLX_nvidia.so.0",
    "libvulkan_radeon.so", "libvulkan_intel.so", "libvulkan_lvp.so",
#endif
};

void* FindLibrary() {
  if (const char* name = std::getenv("MINICPM_VULKAN_LIBRARY")) return OpenLibrary(name);
  for (const char* name : kLibraries) {
    if (void* library = OpenLibrary(name)) return library;
  }
  return nullptr;
}

// A driver that is asked directly wants to agree on a version of that interface first.
PFN_vkGetInstanceProcAddr EntryPoint(void* library) {
  if (auto entry = FindSymbol<PFN_vkGetInstanceProcAddr>(library, "vkGetInstanceProcAddr")) return entry;
  auto negotiate = FindSymbol<VkResult(VKAPI_PTR*)(uint32_t*)>(library, "vk_icdNegotiateLoaderICDInterfaceVersion");
  uint32_t version = 5;
  if (negotiate != nullptr && negotiate(&version) != VK_SUCCESS) return nullptr;
  return FindSymbol<PFN_vkGetInstanceProcAddr>(library, "vk_icdGetInstanceProcAddr");
}

VkInstance MakeInstance(PFN_vkGetInstanceProcAddr entry) {
  auto create = reinterpret_cast<PFN_vkCreateInstance>(entry(nullptr, "vkCreateInstance"));
  auto list = reinterpret_cast<PFN_vkEnumerateInstanceExtensionProperties>(
      entry(nullptr, "vkEnumerateInstanceExtensionProperties"));
  if (create == nullptr || list == nullptr) return nullptr;
  VkApplicationInfo application{VK_STRUCTURE_TYPE_APPLICATION_INFO};
  application.pApplicationName = "minicpm-mlc";
  application.apiVersion = VK_API_VERSION_1_1;
  VkInstanceCreateInfo info{VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
  info.pApplicationInfo = &application;
  const char* portability = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;  // the loader hides MoltenVK without it
  for (const VkExtensionProperties& extension : Listed<VkExtensionProperties>(
           [&](uint32_t* count, VkExtensionProperties* found) { list(nullptr, count, found); })) {
    if (std::strcmp(extension.extensionName, portability) != 0) continue;
    info.flags = VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
    info.enabledExtensionCount = 1;
    info.ppEnabledExtensionNames = &portability;
  }
  VkInstance instance = nullptr;
  return create(&info, nullptr, &instance) == VK_SUCCESS ? instance : nullptr;
}

VkPhysicalDeviceProperties Properties(const InstanceFunctions& vk, VkPhysicalDevice device) {
  VkPhysicalDeviceProperties2 properties{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
  vk.vkGetPhysicalDeviceProperties2(device, &properties);
  return properties.properties;
}

int Rank(const InstanceFunctions& vk, VkPhysicalDevice device) {
  switch (Properties(vk, device).deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return 1;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return 3;
    default:
      return 2;
  }
}

const char* Explain(VkResult result) {
  switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
      return "out of memory; use a smaller --context";
    case VK_ERROR_DEVICE_LOST:
      return "the device was lost, and what it held; start the program again, and if it happens again try a newer "
             "driver";
    case VK_ERROR_INITIALIZATION_FAILED:
      return "the driver does not start; install a newer one";
    default:
      return "see vulkan_core.h";
  }
}

}  // namespace

Driver OpenDriver() {
  Driver driver;
  void* library = FindLibrary();
  auto entry = library != nullptr ? EntryPoint(library) : nullptr;
  VkInstance instance = entry != nullptr ? MakeInstance(entry) : nullptr;
  if (instance == nullptr) return driver;
  InstanceFunctions& vk = driver.functions;
#define MINICPM_FIND(name) vk.name = reinterpret_cast<PFN_##name>(entry(instance, #name));
  MINICPM_VULKAN_INSTANCE_FUNCTIONS(MINICPM_FIND)
#undef MINICPM_FIND
  for (VkPhysicalDevice device : Listed<VkPhysicalDevice>(
           [&](uint32_t* count, VkPhysicalDevice* found) { vk.vkEnumeratePhysicalDevices(instance, count, found); })) {
    bool fit = Properties(vk, device).apiVersion >= VK_API_VERSION_1_1 && ComputeFamily(vk, device) >= 0;
    if (fit) driver.devices.push_back(device);
  }
  std::stable_sort(driver.devices.begin(), driver.devices.end(),
                   [&](VkPhysicalDevice a, VkPhysicalDevice b) { return Rank(vk, a) < Rank(vk, b); });
  return driver;
}

int ComputeFamily(const InstanceFunctions& vk, VkPhysicalDevice device) {
  auto families = Listed<VkQueueFamilyProperties>([&](uint32_t* count, VkQueueFamilyProperties* found) {
    vk.vkGetPhysicalDeviceQueueFamilyProperties(device, count, found);
  });
  for (size_t i = 0; i < families.size(); ++i) {
    if (families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) return static_cast<int>(i);
  }
  return -1;
}

void Check(VkResult result, const char* what) {
  if (result < 0) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: " << what << " failed with " << result << ": " << Explain(result);
  }
}

}  // namespace vulkan
}  // namespace minicpm
