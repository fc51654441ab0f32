#include "devices.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tuple.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstdlib>
#include <utility>

namespace minicpm {
namespace vulkan {
namespace {

namespace ffi = tvm::ffi;

thread_local int current_device = 0;
// TVM waits after each copy to a device, lest the host's data vanish. It has been taken by then: launches go on piling
// up.
thread_local bool just_wrote = false;

Buffer* BufferOf(const void* pointer) { return static_cast<Buffer*>(const_cast<void*>(pointer)); }

// Version as Vulkan packs it, "1.3.224".
std::string VersionText(uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." + std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

}  // namespace

Devices* Devices::Global() {
  static Devices* devices = new Devices();  // never freed: drivers are gone before static objects are
  return devices;
}

const Driver& Devices::OpenedDriver() {
  std::call_once(once_, [this] {
    driver_ = OpenDriver();
    devices_.resize(driver_.devices.size());
  });
  return driver_;
}

Device& Devices::At(int index) {
  const Driver& driver = OpenedDriver();
  if (index < 0 || static_cast<size_t>(index) >= devices_.size()) {
    TVM_FFI_THROW(RuntimeError) << "no Vulkan device " << index << ", found " << devices_.size()
                                << "; install a driver, for a CPU: apt-get install mesa-vulkan-drivers";
  }
  std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Device>& device = devices_[index];
  if (!device) {
    bool staging = std::getenv("MINICPM_VULKAN_STAGING") != nullptr;
    device = std::make_unique<Device>(driver, driver.devices[index], staging);
  }
  return *device;
}

int Devices::current() const { return current_device; }

void Devices::SetDevice(tvm::Device device) {
  current_device = device.device_id;
  just_wrote = false;
}

void Devices::GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, ffi::Any* value) {
  const Driver& driver = OpenedDriver();
  bool exists = static_cast<size_t>(device.device_id) < driver.devices.size();
  if (kind == tvm::runtime::kExist) *value = static_cast<int64_t>(exists);
  if (kind == tvm::runtime::kExist || !exists) return;
  Description about = Describe(driver, driver.devices[device.device_id]);
  const VkPhysicalDeviceLimits& limits = about.properties.limits;
  switch (kind) {
    case tvm::runtime::kMaxThreadsPerBlock:
      *value = static_cast<int64_t>(limits.maxComputeWorkGroupInvocations);
      break;
    case tvm::runtime::kWarpSize:
      *value = int64_t{1};  // nothing may be assumed
      break;
    case tvm::runtime::kMaxSharedMemoryPerBlock:
      *value = static_cast<int64_t>(limits.maxComputeSharedMemorySize);
      break;
    case tvm::runtime::kDeviceName:
      *value = ffi::String(about.name);
      break;
    case tvm::runtime::kDriverVersion:
      *value = ffi::String(about.driver);
      break;
    case tvm::runtime::kApiVersion:
      *value = ffi::String(VersionText(about.properties.apiVersion));
      break;
    case tvm::runtime::kTotalGlobalMemory:
      *value = static_cast<int64_t>(about.memory_size());
      break;
    case tvm::runtime::kAvailableGlobalMemory:
      if (about.unified()) break;  // the host knows
      *value = static_cast<int64_t>(about.free ? *about.free : At(device.device_id).available());
      break;
    default:
      break;
  }
}

void* Devices::AllocDataSpace(tvm::Device device, size_t bytes, size_t, DLDataType) {
  return At(device.device_id).Allocate(bytes);
}

void Devices::FreeDataSpace(tvm::Device device, void* pointer) { At(device.device_id).Free(BufferOf(pointer)); }

void Devices::StreamSync(tvm::Device device, TVMStreamHandle) {
  if (!std::exchange(just_wrote, false)) At(device.device_id).Wait();
}

void Devices::CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                             tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) {
  just_wrote = from_device.device_type == kDLCPU;
  if (bytes == 0) return;
  if (from_device.device_type == kDLCPU) {
    At(to_device.device_id).Write(BufferOf(to), to_offset, static_cast<const char*>(from) + from_offset, bytes);
  } else if (to_device.device_type == kDLCPU) {
    At(from_device.device_id).Read(BufferOf(from), from_offset, static_cast<char*>(to) + to_offset, bytes);
  } else if (from_device.device_id == to_device.device_id) {
    At(to_device.device_id).Copy(BufferOf(from), from_offset, BufferOf(to), to_offset, bytes);
  } else {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: a copy from device " << from_device.device_id << " to device "
                                << to_device.device_id << " is not implemented; copy through the host";
  }
}

// What a benchmark asks of a device.
ffi::Map<ffi::String, int64_t> Counters(int64_t device) {
  Device::Counters found = Devices::Global()->At(static_cast<int>(device)).counters();
  return {{"submissions", static_cast<int64_t>(found.submissions)},
          {"launches", static_cast<int64_t>(found.launches)},
          {"blocks", static_cast<int64_t>(found.blocks)},
          {"used", static_cast<int64_t>(found.used)},
          {"reserved", static_cast<int64_t>(found.reserved)}};
}

// Turns timing on, or off; returns the kernels timed since it was last asked and their nanoseconds, in order.
ffi::Array<ffi::Tuple<ffi::String, int64_t>> Profile(int64_t index, bool on) {
  Device& device = Devices::Global()->At(static_cast<int>(index));
  device.Profile(on);
  ffi::Array<ffi::Tuple<ffi::String, int64_t>> times;
  for (auto& [kernel, nanoseconds] : device.TakeTimes())
    times.push_back(ffi::Tuple<ffi::String, int64_t>(ffi::String(kernel), nanoseconds));
  return times;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  if (ffi::Function::GetGlobal("device_api.vulkan").has_value()) return;  // a TVM with its own runtime
  ffi::reflection::GlobalDef()
      .def_packed("device_api.vulkan",
                  [](ffi::PackedArgs, ffi::Any* value) {
                    *value = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(Devices::Global()));
                  })
      .def("minicpm.vulkan.counters", Counters)
      .def("minicpm.vulkan.profile", Profile);
}

}  // namespace vulkan
}  // namespace minicpm
