// TVM's device interface over OpenCL: one context and one in-order queue per device.
#pragma once

#include <tvm/runtime/device_api.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "driver.h"

namespace minicpm {
namespace opencl {

// What TVM sees as a device pointer.
struct Buffer {
  cl_mem memory;
  size_t size;
};

struct Device {
  cl_device_id id = nullptr;
  cl_context context = nullptr;
  cl_command_queue queue = nullptr;
  std::atomic<size_t> taken{0};  // bytes of all buffers
};

// What a device says of itself.
std::string Text(const Driver& cl, cl_device_id id, cl_device_info what);

class Devices final : public tvm::runtime::DeviceAPI {
 public:
  static Devices* Global();

  // A device is opened when something is first done with it. Throws RuntimeError for one that isn't there or doesn't open.
  Device& At(int index);
  // Of a device that is there.
  const Driver& driver() const { return *driver_; }
  // The device that this thread's launches go to.
  int current() const;

  void SetDevice(tvm::Device device) final;
  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, tvm::ffi::Any* value) final;
  void* AllocDataSpace(tvm::Device device, size_t bytes, size_t alignment, DLDataType type) final;
  void FreeDataSpace(tvm::Device device, void* pointer) final;
  void StreamSync(tvm::Device device, TVMStreamHandle stream) final;

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_device, tvm::Device to_device, DLDataType type, TVMStreamHandle stream) final;

 private:
  Devices();

  cl_device_id Find(int index) const;

  const Driver* driver_;
  std::vector<cl_device_id> found_;
  std::mutex mutex_;
  std::map<int, Device> opened_;
};

}  // namespace opencl
}  // namespace minicpm
