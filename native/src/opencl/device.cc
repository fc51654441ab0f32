#include "device.h"

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>

namespace minicpm {
namespace opencl {
namespace {

using tvm::runtime::DeviceAttrKind;

thread_local int current_device = 0;

// GPUs come first, so that device 0 is what a user means.
std::vector<cl_device_id> FindDevices(const Driver& cl) {
  cl_uint count = 0;
  if (cl.clGetPlatformIDs(0, nullptr, &count) != CL_SUCCESS || count == 0) return {};
  std::vector<cl_platform_id> platforms(count);
  if (cl.clGetPlatformIDs(count, platforms.data(), nullptr) != CL_SUCCESS) return {};
  std::vector<cl_device_id> found;
  for (cl_device_type type : {CL_DEVICE_TYPE_GPU, CL_DEVICE_TYPE_ACCELERATOR, CL_DEVICE_TYPE_CPU}) {
    for (cl_platform_id platform : platforms) {
      if (cl.clGetDeviceIDs(platform, type, 0, nullptr, &count) != CL_SUCCESS || count == 0) continue;
      std::vector<cl_device_id> devices(count);
      if (cl.clGetDeviceIDs(platform, type, count, devices.data(), nullptr) != CL_SUCCESS) continue;
      found.insert(found.end(), devices.begin(), devices.end());
    }
  }
  return found;
}

void Open(const Driver& cl, Device* device) {
  cl_int status;
  cl_context context = cl.clCreateContext(nullptr, 1, &device->id, nullptr, nullptr, &status);
  Check(status, "creating a context");
  device->queue = cl.clCreateCommandQueue(context, device->id, 0, &status);
  Check(status, "creating a queue");
  device->context = context;
}

template <typename T>
int64_t Number(const Driver& cl, cl_device_id id, cl_device_info what) {
  T value{};
  Check(cl.clGetDeviceInfo(id, what, sizeof(value), &value, nullptr), "asking a device");
  return static_cast<int64_t>(value);
}

cl_mem Memory(const void* pointer) { return static_cast<const Buffer*>(pointer)->memory; }

}  // namespace

std::string Text(const Driver& cl, cl_device_id id, cl_device_info what) {
  size_t size = 0;
  Check(cl.clGetDeviceInfo(id, what, 0, nullptr, &size), "asking a device");
  std::string text(size, '\0');
  Check(cl.clGetDeviceInfo(id, what, size, text.data(), nullptr), "asking a device");
  text.resize(std::min(text.size(), text.find('\0')));
  return text;
}

Devices* Devices::Global() {
  static Devices* devices = new Devices();  // never freed: drivers are gone before static objects are
  return devices;
}

Devices::Devices() : driver_(FindDriver()) {
  if (driver_ != nullptr) found_ = FindDevices(*driver_);
}

cl_device_id Devices::Find(int index) const {
  if (index < 0 || static_cast<size_t>(index) >= found_.size()) {
    TVM_FFI_THROW(RuntimeError) << "no OpenCL device " << index << ", found " << found_.size()
                                << "; install a driver, for a CPU: apt-get install pocl-opencl-icd";
  }
  return found_[index];
}

Device& Devices::At(int index) {
  cl_device_id id = Find(index);
  std::lock_guard<std::mutex> lock(mutex_);
  Device& device = opened_[index];
  if (device.context == nullptr) {
    device.id = id;
    Open(*driver_, &device);
  }
  return device;
}

int Devices::current() const { return current_device; }

void Devices::SetDevice(tvm::Device device) { current_device = device.device_id; }

void Devices::GetAttr(tvm::Device device, DeviceAttrKind kind, tvm::ffi::Any* value) {
  bool exists = static_cast<size_t>(device.device_id) < found_.size();
  if (kind == tvm::runtime::kExist || !exists) {
    if (kind == tvm::runtime::kExist) *value = static_cast<int64_t>(exists);
    return;
  }
  const Driver& cl = *driver_;
  cl_device_id id = Find(device.device_id);
  switch (kind) {
    case tvm::runtime::kMaxThreadsPerBlock:
      *value = Number<size_t>(cl, id, CL_DEVICE_MAX_WORK_GROUP_SIZE);
      break;
    case tvm::runtime::kWarpSize:
      *value = int64_t{1};  // nothing may be assumed
      break;
    case tvm::runtime::kMaxSharedMemoryPerBlock:
      *value = Number<cl_ulong>(cl, id, CL_DEVICE_LOCAL_MEM_SIZE);
      break;
    case tvm::runtime::kDeviceName:
      *value = tvm::ffi::String(Text(cl, id, CL_DEVICE_NAME));
      break;
    case tvm::runtime::kDriverVersion:
      *value = tvm::ffi::String(Text(cl, id, CL_DRIVER_VERSION));
      break;
    case tvm::runtime::kMaxClockRate:
      *value = Number<cl_uint>(cl, id, CL_DEVICE_MAX_CLOCK_FREQUENCY);
      break;
    case tvm::runtime::kMultiProcessorCount:
      *value = Number<cl_uint>(cl, id, CL_DEVICE_MAX_COMPUTE_UNITS);
      break;
    case tvm::runtime::kTotalGlobalMemory:
      *value = Number<cl_ulong>(cl, id, CL_DEVICE_GLOBAL_MEM_SIZE);
      break;
    case tvm::runtime::kAvailableGlobalMemory: {
      if (Number<cl_bool>(cl, id, CL_DEVICE_HOST_UNIFIED_MEMORY)) break;  // the host knows
      int64_t all = Number<cl_ulong>(cl, id, CL_DEVICE_GLOBAL_MEM_SIZE);
      *value = std::max<int64_t>(0, all - static_cast<int64_t>(At(device.device_id).taken));
      break;
    }
    default:
      break;
  }
}

void* Devices::AllocDataSpace(tvm::Device device, size_t bytes, size_t, DLDataType) {
  Device& opened = At(device.device_id);
  cl_int status;
  bytes = std::max<size_t>(bytes, 1);
  cl_mem memory = driver_->clCreateBuffer(opened.context, CL_MEM_READ_WRITE, bytes, nullptr, &status);
  Check(status, "allocating a buffer");
  opened.taken += bytes;
  return new Buffer{memory, bytes};
}

void Devices::FreeDataSpace(tvm::Device device, void* pointer) {
  // The driver keeps the memory until the commands that use it are done.
  At(device.device_id).taken -= static_cast<Buffer*>(pointer)->size;
  driver_->clReleaseMemObject(Memory(pointer));
  delete static_cast<Buffer*>(pointer);
}

void Devices::StreamSync(tvm::Device device, TVMStreamHandle) {
  Check(driver_->clFinish(At(device.device_id).queue), "waiting for the device");
}

void Devices::CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                             tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) {
  if (bytes == 0) return;
  cl_command_queue queue = At((to_device.device_type == kDLOpenCL ? to_device : from_device).device_id).queue;
  if (from_device.device_type == kDLCPU) {
    Check(driver_->clEnqueueWriteBuffer(queue, Memory(to), CL_TRUE, to_offset, bytes,
                                        static_cast<const char*>(from) + from_offset, 0, nullptr, nullptr),
          "copying to the device");
  } else if (to_device.device_type == kDLCPU) {
    Check(driver_->clEnqueueReadBuffer(queue, Memory(from), CL_TRUE, from_offset, bytes,
                                       static_cast<char*>(to) + to_offset, 0, nullptr, nullptr),
          "copying from the device");
  } else if (from_device.device_id == to_device.device_id) {
    Check(driver_->clEnqueueCopyBuffer(queue, Memory(from), Memory(to), from_offset, to_offset, bytes, 0, nullptr,
                                       nullptr),
          "copying on the device");
  } else {
    TVM_FFI_THROW(RuntimeError) << "OpenCL: a copy from device " << from_device.device_id << " to device "
                                << to_device.device_id << " is not implemented; copy through the host";
  }
}

TVM_FFI_STATIC_INIT_BLOCK() {
  if (tvm::ffi::Function::GetGlobal("device_api.opencl").has_value()) return;  // a TVM with its own runtime
  tvm::ffi::reflection::GlobalDef().def_packed("device_api.opencl", [](tvm::ffi::PackedArgs, tvm::ffi::Any* value) {
    *value = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(Devices::Global()));
  });
}

}  // namespace opencl
}  // namespace minicpm
