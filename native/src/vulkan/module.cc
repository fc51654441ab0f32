// A library's Vulkan part: kernels are built for a device when they are first launched there.
#include <map>
#include <mutex>
#include <utility>

#include "../common/bytes.h"
#include "../common/module.h"
#include "devices.h"

namespace minicpm {
namespace vulkan {
namespace {

namespace ffi = tvm::ffi;

// What TVM's serializer stores: format, kernels' signatures, shaders.
struct Artifact {
  std::map<std::string, KernelInfo> kernels;
  std::map<std::string, Shader> shaders;
};

Artifact ReadArtifact(const ffi::Bytes& bytes) {
  Reader reader(bytes, "Vulkan");
  reader.Text();  // the format
  Artifact artifact;
  artifact.kernels = ReadKernels(&reader);
  for (uint64_t n = reader.Number<uint64_t>(); n > 0; --n) {
    std::string name = reader.Text();
    bool uniform = (reader.Number<uint32_t>() & 1) != 0;
    artifact.shaders[name] = Shader{uniform, reader.Words()};
  }
  for (const auto& [name, info] : artifact.kernels) {
    if (artifact.shaders.count(name) > 0) continue;
    TVM_FFI_THROW(RuntimeError) << "the library has no shader for kernel " << name << "; compile the bundle again";
  }
  return artifact;
}

class Kernels {
 public:
  static constexpr const char* kKind = "vulkan";

  explicit Kernels(const ffi::Bytes& bytes) : artifact_(ReadArtifact(bytes)) {}

  ~Kernels() {
    for (auto& [key, kernel] : built_) Devices::Global()->At(key.first).Destroy(kernel);
  }

  const std::map<std::string, KernelInfo>& signatures() const { return artifact_.kernels; }
  std::string source() const { return ""; }

  // Arguments, then the extents that the launch tags name.
  void Launch(const KernelInfo& info, const TVMFFIAny* arguments) {
    Grid grid = ReadGrid(info, arguments);
    if (grid.empty()) return;
    Kernel& kernel = Get(info);
    Buffer* buffers[Pipelines::kMostBuffers];
    scalars_.resize(info.arg_types.size());
    uint32_t buffer = 0, scalar = 0;
    for (size_t i = 0; i < info.arg_types.size(); ++i) {
      if (info.arg_types[i].code == kDLOpaqueHandle) {
        buffers[buffer++] = static_cast<Buffer*>(arguments[i].v_ptr);
      } else {
        scalars_[scalar++] = Scalar(info, i, arguments[i]);
      }
    }
    Devices::Global()->At(Devices::Global()->current()).Launch(&kernel, buffers, scalars_.data(), grid);
  }

 private:
  // An argument as it lies in its 8 bytes.
  static uint64_t Scalar(const KernelInfo& info, size_t index, const TVMFFIAny& value) {
    DLDataType type = info.arg_types[index];
    uint64_t bits = 0;
    if (type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool) {
      bits = static_cast<uint64_t>(value.v_int64);
    } else if (type.code == kDLFloat && type.bits == 32) {
      auto narrow = static_cast<float>(value.v_float64);
      std::memcpy(&bits, &narrow, sizeof(narrow));
    } else if (type.code == kDLFloat && type.bits == 64) {
      std::memcpy(&bits, &value.v_float64, sizeof(bits));
    } else {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: argument " << index << " of kernel " << info.name
                                  << " has a type that no kernel takes";
    }
    return bits;
  }

  Kernel& Get(const KernelInfo& info) {
    int device = Devices::Global()->current();
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = built_.find({device, info.name});
    if (found != built_.end()) return found->second;
    Kernel kernel = Devices::Global()->At(device).Build(info, artifact_.shaders.at(info.name));
    return built_.emplace(std::make_pair(device, info.name), kernel).first->second;
  }

  static thread_local std::vector<uint64_t> scalars_;

  Artifact artifact_;
  std::mutex mutex_;
  std::map<std::pair<int, std::string>, Kernel> built_;
};

thread_local std::vector<uint64_t> Kernels::scalars_;

TVM_FFI_STATIC_INIT_BLOCK() { DeviceModule<Kernels>::Register(); }

}  // namespace
}  // namespace vulkan
}  // namespace minicpm
