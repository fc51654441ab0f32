#include "pipelines.h"

#include <tvm/ffi/error.h>

#include <algorithm>

#include "../common/disk_cache.h"

namespace minicpm {
namespace vulkan {
namespace {

constexpr uint32_t kMagic = 0x07230203, kHeaderWords = 5, kOpCapability = 17;

// What SPIR-V calls what not every device has.
const char* OptionalCapability(uint32_t capability) {
  switch (capability) {
    case 9:
      return "16-bit floats";
    case 10:
      return "64-bit floats";
    case 11:
      return "64-bit integers";
    case 22:
      return "16-bit integers";
    case 39:
      return "8-bit integers";
    case 4433:
      return "16-bit storage";
    case 4448:
      return "8-bit storage";
    case 6018:
    case 6019:
      return "the integer dot product";
    default:
      return nullptr;
  }
}

// Of the device and its driver: another driver can't read what this one made.
std::string CacheName(const VkPhysicalDeviceProperties& properties) {
  std::string name = "vulkan";
  for (uint32_t part : {properties.vendorID, properties.deviceID, properties.driverVersion})
    name += "-" + std::to_string(part);
  name += "-";
  for (uint8_t byte : properties.pipelineCacheUUID) {
    for (int digit : {byte >> 4, byte & 15}) name += "0123456789abcdef"[digit];
  }
  return name + ".bin";
}

}  // namespace

Pipelines::Pipelines(const Gpu* gpu) : gpu_(gpu) {
  std::string data = ReadCache(CacheName(gpu->about.properties));
  VkPipelineCacheCreateInfo info{VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  info.initialDataSize = data.size();
  info.pInitialData = data.data();
  Check(gpu->vk.vkCreatePipelineCache(gpu->device, &info, nullptr, &cache_), "creating a pipeline cache");
}

Kernel Pipelines::Build(const KernelInfo& info, const Shader& shader) {
  Kernel kernel;
  kernel.name = info.name;
  kernel.uniform = shader.uniform;
  for (DLDataType type : info.arg_types) ++(type.code == kDLOpaqueHandle ? kernel.buffers : kernel.scalars);
  for (int place : info.extents) kernel.one_dimensional &= place != 1 && place != 2;
  Refuse(info, shader, kernel.buffers);
  try {
    MakeLayout(&kernel);
    MakePipeline(&kernel, shader);
  } catch (...) {
    Destroy(kernel);
    throw;
  }
  changed_ = true;
  return kernel;
}

void Pipelines::Refuse(const KernelInfo& info, const Shader& shader, uint32_t buffers) const {
  const std::vector<uint32_t>& words = shader.words;
  if (words.size() <= kHeaderWords || words[0] != kMagic) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << info.name << " is no SPIR-V; compile the bundle again";
  }
  for (size_t at = kHeaderWords; at + 1 < words.size() && (words[at] & 0xffff) == kOpCapability; at += 2) {
    const char* name = OptionalCapability(words[at + 1]);
    if (name == nullptr || gpu_->capabilities.count(words[at + 1]) > 0) continue;
    TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << info.name << " needs " << name << ", which " << gpu_->about.name
                                << " hasn't; compile the bundle for another device";
  }
  uint32_t most = std::min(kMostBuffers, gpu_->about.properties.limits.maxPerStageDescriptorStorageBuffers);
  if (buffers > most) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << info.name << " reads and writes " << buffers << " tensors, "
                                << gpu_->about.name << " allows " << most << "; compile the bundle for another device";
  }
}

void Pipelines::MakeLayout(Kernel* kernel) const {
  std::vector<VkDescriptorSetLayoutBinding> bindings;
  for (uint32_t i = 0; i < kernel->buffers + (kernel->uniform ? 1 : 0); ++i) {
    VkDescriptorType type = i < kernel->buffers ? VK_DESCRIPTOR_TYPE_STORAGE_BUFFER : VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
    bindings.push_back({i, type, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  }
  VkDescriptorSetLayoutCreateInfo set{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO};
  set.bindingCount = static_cast<uint32_t>(bindings.size());
  set.pBindings = bindings.data();
  Check(gpu_->vk.vkCreateDescriptorSetLayout(gpu_->device, &set, nullptr, &kernel->set), kernel->name.c_str());

  VkPushConstantRange constants{VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                static_cast<uint32_t>(kernel->scalars * sizeof(uint64_t))};
  VkPipelineLayoutCreateInfo layout{VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO};
  layout.setLayoutCount = 1;
  layout.pSetLayouts = &kernel->set;
  if (kernel->scalars > 0 && !kernel->uniform) {
    if (constants.size > gpu_->about.properties.limits.maxPushConstantsSize) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << kernel->name << " has " << constants.size
                                  << " bytes of scalars, " << gpu_->about.name
                                  << " takes fewer; compile the bundle for another device";
    }
    layout.pushConstantRangeCount = 1;
    layout.pPushConstantRanges = &constants;
  }
  Check(gpu_->vk.vkCreatePipelineLayout(gpu_->device, &layout, nullptr, &kernel->layout), kernel->name.c_str());
}

void Pipelines::MakePipeline(Kernel* kernel, const Shader& shader) {
  VkShaderModuleCreateInfo code{VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
  code.codeSize = shader.words.size() * sizeof(uint32_t);
  code.pCode = shader.words.data();
  VkShaderModule module;
  Check(gpu_->vk.vkCreateShaderModule(gpu_->device, &code, nullptr, &module), kernel->name.c_str());
  VkComputePipelineCreateInfo info{VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = module;
  info.stage.pName = kernel->name.c_str();
  info.layout = kernel->layout;
  VkResult result = gpu_->vk.vkCreateComputePipelines(gpu_->device, cache_, 1, &info, nullptr, &kernel->pipeline);
  gpu_->vk.vkDestroyShaderModule(gpu_->device, module, nullptr);
  Check(result, kernel->name.c_str());
}

void Pipelines::Destroy(const Kernel& kernel) const {
  gpu_->vk.vkDestroyPipeline(gpu_->device, kernel.pipeline, nullptr);
  gpu_->vk.vkDestroyPipelineLayout(gpu_->device, kernel.layout, nullptr);
  gpu_->vk.vkDestroyDescriptorSetLayout(gpu_->device, kernel.set, nullptr);
}

void Pipelines::Save() {
  changed_ = false;
  size_t size = 0;
  if (gpu_->vk.vkGetPipelineCacheData(gpu_->device, cache_, &size, nullptr) != VK_SUCCESS) return;
  std::string data(size, '\0');
  if (gpu_->vk.vkGetPipelineCacheData(gpu_->device, cache_, &size, data.data()) != VK_SUCCESS) return;
  data.resize(size);
  WriteCache(CacheName(gpu_->about.properties), data);
}

}  // namespace vulkan
}  // namespace minicpm
