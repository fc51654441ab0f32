#include "device_memory.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <map>
#include <optional>

#include "host.h"

namespace minicpm {
namespace {

namespace ffi = tvm::ffi;

constexpr int kExists = 0, kName = 5, kDriver = 12, kTotal = 14, kFree = 15;  // TVM's numbers of a device's attributes
constexpr int kPooledAllocator = 2;
constexpr const char* kAdvice = "install its driver, or compile the model again: minicpm-mlc compile --device cpu";

// DLPack's numbers, as in minicpm_mlc/bundle/devices.py.
const std::map<std::string, int>& Devices() {
  static const std::map<std::string, int> devices = {{"cpu", kDLCPU}, {"opencl", kDLOpenCL}, {"vulkan", kDLVulkan}};
  return devices;
}

ffi::Any Attribute(int type, int which) {
  static const ffi::Function attribute = ffi::Function::GetGlobalRequired("runtime.GetDeviceAttr");
  return attribute(type, 0, which);
}

std::string TextOf(const ffi::Any& value) {
  std::optional<ffi::String> text = value.as<ffi::String>();
  return text ? std::string(*text) : "";
}

}  // namespace

void CheckDevice(const std::string& device) {
  if (device == "cpu") return;
  auto known = Devices().find(device);
  if (known == Devices().end() || !ffi::Function::GetGlobal("device_api." + device).has_value()) {
    throw DeviceError("the bundle was compiled for " + device +
                      ", and this engine was built without it; compile the model again: minicpm-mlc compile --device cpu");
  }
  if (!Attribute(known->second, kExists).cast<int>()) throw DeviceError("no " + device + " device was found; " + kAdvice);
}

Memory::Memory(const std::string& device) {
  CheckDevice(device);
  type_ = Devices().at(device);
  if (on_host()) return;
  name_ = TextOf(Attribute(type_, kName));
  identity_ = name_ + " " + TextOf(Attribute(type_, kDriver));
  new_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  write_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
  read_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
}

// A device that doesn't tell has the host's memory, or a part of it.
uint64_t Memory::Free() const {
  uint64_t host = AvailableMemory();
  if (on_host()) return host;
  return Guarded([&] {
    if (auto own = Attribute(type_, kFree).as<int64_t>()) return static_cast<uint64_t>(*own);
    auto total = Attribute(type_, kTotal).as<int64_t>();
    return total ? std::min(host, static_cast<uint64_t>(*total)) : host;
  });
}

void Memory::Start(const ffi::Function& initialization) const {
  Guarded([&] {
    if (on_host()) {
      initialization(type_, 0, kPooledAllocator);
    } else {  // the host is the last
      initialization(type_, 0, kPooledAllocator, static_cast<int>(kDLCPU), 0, kPooledAllocator);
    }
  });
}

Tensor Memory::New(const std::vector<int64_t>& shape, DLDataType dtype) const {
  if (on_host()) return ReservedTensor(shape, dtype);
  DLDevice device{static_cast<DLDeviceType>(type_), 0};
  return Guarded([&] { return new_(ffi::Shape(shape), dtype, device, nullptr).cast<Tensor>(); });
}

Tensor Memory::Given(const Tensor& host) const {
  if (on_host()) return host;
  Tensor there = New({host.shape().begin(), host.shape().end()}, host.dtype());
  Guarded([&] { write_(there, host.data_ptr(), static_cast<int64_t>(ffi::GetDataSize(host))); });
  return there;
}

Tensor Memory::Read(const Tensor& result) const {
  if (on_host()) return result;
  Tensor host = NewTensor({result.shape().begin(), result.shape().end()}, result.dtype());
  Guarded([&] { read_(result, host.data_ptr(), static_cast<int64_t>(ffi::GetDataSize(host))); });
  return host;
}

void Memory::FailOf(const ffi::Error& error) const {
  std::string said = error.message();
  throw DeviceError(name_ + ": " + said + (said.find("; ") == std::string::npos ? std::string("; ") + kAdvice : ""));
}

}  // namespace minicpm
