// A library's OpenCL part: kernels are built for a device when they are first launched there.
#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "../common/bytes.h"
#include "../common/module.h"
#include "device.h"
#include "programs.h"

namespace minicpm {
namespace opencl {
namespace {

namespace ffi = tvm::ffi;

// What TVM's serializer stores: format, kernels' signatures, source.
struct Artifact {
  std::map<std::string, KernelInfo> kernels;
  std::string source;
};

Artifact ReadArtifact(const ffi::Bytes& bytes) {
  Reader reader(bytes, "OpenCL");
  reader.Text();  // the format
  Artifact artifact;
  artifact.kernels = ReadKernels(&reader);
  artifact.source = reader.Text();
  return artifact;
}

class Kernels {
 public:
  static constexpr const char* kKind = "opencl";

  explicit Kernels(const ffi::Bytes& bytes) : artifact_(ReadArtifact(bytes)) {}

  ~Kernels() {
    for (auto& [key, kernel] : kernels_) Devices::Global()->driver().clReleaseKernel(kernel);
    for (auto& [device, program] : programs_) Devices::Global()->driver().clReleaseProgram(program);
  }

  const std::map<std::string, KernelInfo>& signatures() const { return artifact_.kernels; }
  std::string source() const { return artifact_.source; }

  // Arguments, then the extents that the launch tags name.
  void Launch(const KernelInfo& info, const TVMFFIAny* arguments) {
    Grid grid = ReadGrid(info, arguments);
    if (grid.empty()) return;
    std::array<size_t, 3> global;
    for (int i = 0; i < 3; ++i) global[i] = grid.blocks[i] * grid.threads[i];
    std::lock_guard<std::mutex> lock(mutex_);  // a kernel's arguments are state of the kernel
    const Device& device = Devices::Global()->At(Devices::Global()->current());
    const Driver& cl = Devices::Global()->driver();
    cl_kernel kernel = Get(info);
    for (size_t i = 0; i < info.arg_types.size(); ++i) {
      SetArgument(kernel, static_cast<cl_uint>(i), info.arg_types[i], arguments[i]);
    }
    Check(cl.clEnqueueNDRangeKernel(device.queue, kernel, 3, nullptr, global.data(), grid.threads.data(), 0, nullptr,
                                    nullptr),
          info.name.c_str());
  }

 private:
  void SetArgument(cl_kernel kernel, cl_uint index, DLDataType type, const TVMFFIAny& value) {
    if (type.code == kDLOpaqueHandle) {
      return Set(kernel, index, static_cast<const Buffer*>(value.v_ptr)->memory);
    }
    if (type.code == kDLFloat && type.bits == 32) return Set(kernel, index, static_cast<float>(value.v_float64));
    if (type.code == kDLFloat && type.bits == 64) return Set(kernel, index, value.v_float64);
    if (type.code != kDLFloat && type.bits == 64) return Set(kernel, index, value.v_int64);
    if (type.code != kDLFloat && type.bits == 32) return Set(kernel, index, static_cast<int32_t>(value.v_int64));
    TVM_FFI_THROW(RuntimeError) << "OpenCL: argument " << index << " has a type that no kernel takes";
  }

  template <typename T>
  void Set(cl_kernel kernel, cl_uint index, T value) {
    Check(Devices::Global()->driver().clSetKernelArg(kernel, index, sizeof(value), &value), "setting an argument");
  }

  cl_kernel Get(const KernelInfo& info) {
    cl_kernel& kernel = kernels_[{Devices::Global()->current(), info.name}];
    if (kernel == nullptr) {
      cl_int status;
      kernel = Devices::Global()->driver().clCreateKernel(Program(), info.name.c_str(), &status);
      Check(status, info.name.c_str());
    }
    return kernel;
  }

  cl_program Program() {
    cl_program& program = programs_[Devices::Global()->current()];
    Devices* devices = Devices::Global();
    if (program == nullptr) program = Build(devices->driver(), devices->At(devices->current()), artifact_.source);
    return program;
  }

  Artifact artifact_;
  std::mutex mutex_;
  std::map<int, cl_program> programs_;
  std::map<std::pair<int, std::string>, cl_kernel> kernels_;
};

TVM_FFI_STATIC_INIT_BLOCK() { DeviceModule<Kernels>::Register(); }

}  // namespace
}  // namespace opencl
}  // namespace minicpm
