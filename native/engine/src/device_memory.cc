#include "device_memory.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstring>
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

// Calls body(first, count, place) for each run of consecutive pages; `place`: of the run's first among all.
template <typename Body>
void ForRuns(const std::vector<int32_t>& pages, Body body) {
  for (size_t start = 0, end; start < pages.size(); start = end) {
    end = start + 1;
    while (end < pages.size() && pages[end] == pages[end - 1] + 1) ++end;
    body(pages[start], static_cast<int64_t>(end - start), start);
  }
}

}  // namespace

uint64_t PageBytes(const Tensor& pool) { return ffi::GetDataSize(pool) / static_cast<uint64_t>(pool.shape()[0]); }

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
  view_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorCreateView");
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

// Some pages of a device's pool, in the same memory.
Tensor Memory::Part(const Tensor& pool, int32_t first, int64_t count) const {
  std::vector<int64_t> shape(pool.shape().begin(), pool.shape().end());
  shape[0] = count;
  return view_(pool, ffi::Shape(shape), pool.dtype(), static_cast<uint64_t>(first) * PageBytes(pool)).cast<Tensor>();
}

void Memory::ReadPages(const Tensor& pool, const std::vector<int32_t>& pages, char* bytes) const {
  uint64_t each = PageBytes(pool);
  ForRuns(pages, [&](int32_t first, int64_t count, size_t place) {
    uint64_t size = static_cast<uint64_t>(count) * each;
    if (on_host()) {
      std::memcpy(bytes + place * each, static_cast<char*>(pool.data_ptr()) + static_cast<uint64_t>(first) * each, size);
    } else {
      void* to = bytes + place * each;
      Guarded([&] { read_(Part(pool, first, count), to, static_cast<int64_t>(size)); });
    }
  });
}

void Memory::WritePages(const Tensor& pool, const std::vector<int32_t>& pages, const char* bytes) const {
  uint64_t each = PageBytes(pool);
  ForRuns(pages, [&](int32_t first, int64_t count, size_t place) {
    uint64_t size = static_cast<uint64_t>(count) * each;
    if (on_host()) {
      std::memcpy(static_cast<char*>(pool.data_ptr()) + static_cast<uint64_t>(first) * each, bytes + place * each, size);
    } else {
      void* from = const_cast<char*>(bytes) + place * each;
      Guarded([&] { write_(Part(pool, first, count), from, static_cast<int64_t>(size)); });
    }
  });
}

void Memory::FailOf(const ffi::Error& error) const {
  std::string said = error.message();
  throw DeviceError(name_ + ": " + said + (said.find("; ") == std::string::npos ? std::string("; ") + kAdvice : ""));
}

}  // namespace minicpm
