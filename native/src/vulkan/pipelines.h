// Kernels as one device runs them, and what its driver made of them, kept on disk.
#pragma once

#include <string>
#include <vector>

#include "../common/kernel_info.h"
#include "gpu.h"

namespace minicpm {
namespace vulkan {

// Storage buffers at bindings 0.. of set 0, in the order of the arguments. The other arguments, 8 bytes each, are push
// constants or, when `uniform`, a uniform buffer at the next binding. The entry point has the kernel's name.
struct Shader {
  bool uniform;
  std::vector<uint32_t> words;
};

struct Kernel {
  std::string name;
  uint32_t buffers = 0, scalars = 0;
  bool uniform = false, one_dimensional = true;  // its scalars, its blocks
  VkDescriptorSetLayout set = nullptr;
  VkPipelineLayout layout = nullptr;
  VkPipeline pipeline = nullptr;
  uint64_t last_batch = 0;  // that uses it
};

class Pipelines {
 public:
  static constexpr uint32_t kMostBuffers = 32;

  // A cache on disk that is damaged or another driver's is left aside.
  explicit Pipelines(const Gpu* gpu);

  // Throws RuntimeError when the device can't run the kernel, with the reason.
  Kernel Build(const KernelInfo& info, const Shader& shader);
  void Destroy(const Kernel& kernel) const;

  bool changed() const { return changed_; }
  // Writes the cache to disk; where that can't be done, kernels are built again next time.
  void Save();

 private:
  void Refuse(const KernelInfo& info, const Shader& shader, uint32_t buffers) const;
  void MakeLayout(Kernel* kernel) const;
  void MakePipeline(Kernel* kernel, const Shader& shader);

  const Gpu* gpu_;
  VkPipelineCache cache_ = nullptr;
  bool changed_ = false;
};

}  // namespace vulkan
}  // namespace minicpm
