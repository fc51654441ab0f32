// A library's OpenCL part: kernels are built for a device when they are first launched there.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "artifact.h"
#include "device.h"

namespace minicpm {
namespace {

namespace ffi = tvm::ffi;

// Where the extents of a launch go: index 0..2 for blockIdx, 3..5 for threadIdx.
std::vector<int> LaunchPlaces(const KernelInfo& info) {
  std::vector<int> places;
  for (const std::string& tag : info.launch_tags) {
    bool block = tag.compare(0, 9, "blockIdx.") == 0, thread = tag.compare(0, 10, "threadIdx.") == 0;
    if (!block && !thread) TVM_FFI_THROW(RuntimeError) << "OpenCL: kernel " << info.name << " needs " << tag;
    places.push_back((thread ? 3 : 0) + tag.back() - 'x');
  }
  return places;
}

class Kernels {
 public:
  explicit Kernels(Artifact artifact) : artifact_(std::move(artifact)), devices_(OpenCLDevices::Global()) {}

  ~Kernels() {
    for (auto& [key, kernel] : kernels_) devices_->driver().clReleaseKernel(kernel);
    for (auto& [device, program] : programs_) devices_->driver().clReleaseProgram(program);
  }

  const Artifact& artifact() const { return artifact_; }

  // Arguments, then the extents that the launch tags name.
  void Launch(const KernelInfo& info, const std::vector<int>& places, ffi::PackedArgs args) {
    const auto* values = reinterpret_cast<const TVMFFIAny*>(args.data());
    size_t count = info.arg_types.size();
    std::array<size_t, 6> extents{1, 1, 1, 1, 1, 1};
    for (size_t i = 0; i < places.size(); ++i) extents[places[i]] = static_cast<size_t>(values[count + i].v_int64);
    std::array<size_t, 3> global, local;
    for (int i = 0; i < 3; ++i) {
      local[i] = extents[3 + i];
      global[i] = extents[i] * local[i];
      if (global[i] == 0) return;
    }
    const Driver& cl = devices_->driver();
    std::lock_guard<std::mutex> lock(mutex_);  // a kernel's arguments are state of the kernel
    const OpenCLDevice& device = devices_->At(devices_->current());
    cl_kernel kernel = Get(info);
    for (size_t i = 0; i < count; ++i) SetArgument(kernel, static_cast<cl_uint>(i), info.arg_types[i], values[i]);
    Check(cl.clEnqueueNDRangeKernel(device.queue, kernel, 3, nullptr, global.data(), local.data(), 0, nullptr, nullptr),
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
    Check(devices_->driver().clSetKernelArg(kernel, index, sizeof(value), &value), "setting an argument");
  }

  cl_kernel Get(const KernelInfo& info) {
    cl_kernel& kernel = kernels_[{devices_->current(), info.name}];
    if (kernel == nullptr) {
      cl_int status;
      kernel = devices_->driver().clCreateKernel(Program(), info.name.c_str(), &status);
      Check(status, info.name.c_str());
    }
    return kernel;
  }

  cl_program Program() {
    cl_program& program = programs_[devices_->current()];
    if (program == nullptr) program = Build(devices_->At(devices_->current()));
    return program;
  }

  cl_program Build(const OpenCLDevice& device) {
    const Driver& cl = devices_->driver();
    const char* text = artifact_.source.data();
    size_t size = artifact_.source.size();
    cl_int status;
    cl_program program = cl.clCreateProgramWithSource(device.context, 1, &text, &size, &status);
    Check(status, "reading the kernels");
    if (cl.clBuildProgram(program, 1, &device.id, "-cl-std=CL1.2", nullptr, nullptr) != CL_SUCCESS) {
      std::string log(2000, '\0');
      cl.clGetProgramBuildInfo(program, device.id, CL_PROGRAM_BUILD_LOG, log.size(), log.data(), &size);
      cl.clReleaseProgram(program);
      TVM_FFI_THROW(RuntimeError) << "OpenCL: the driver can't build the kernels: " << log.c_str();
    }
    return program;
  }

  Artifact artifact_;
  OpenCLDevices* devices_;
  std::mutex mutex_;
  std::map<int, cl_program> programs_;
  std::map<std::pair<int, std::string>, cl_kernel> kernels_;
};

class OpenCLModule final : public ffi::ModuleObj {
 public:
  explicit OpenCLModule(const ffi::Bytes& bytes)
      : bytes_(bytes), kernels_(std::make_shared<Kernels>(ReadArtifact(bytes))) {}

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return kernels_->artifact().source; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = kernels_->artifact().kernels.find(std::string(name));
    if (found == kernels_->artifact().kernels.end()) return std::nullopt;
    return ffi::Function::FromPacked(
        [kernels = kernels_, info = found->second, places = LaunchPlaces(found->second)](
            ffi::PackedArgs args, ffi::Any*) { kernels->Launch(info, places, args); });
  }

 private:
  ffi::Bytes bytes_;
  std::shared_ptr<Kernels> kernels_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  if (ffi::Function::GetGlobal("ffi.Module.load_from_bytes.opencl").has_value()) return;
  ffi::reflection::GlobalDef().def("ffi.Module.load_from_bytes.opencl", [](const ffi::Bytes& bytes) {
    return ffi::Module(ffi::make_object<OpenCLModule>(bytes));
  });
}

}  // namespace
}  // namespace minicpm
