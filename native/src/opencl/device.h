// TVM's device interface over OpenCL: one context and one in-order queue per device.
#pragma once

#include <tvm/runtime/device_api.h>

#include <string>
#include <vector>

#include "driver.h"

namespace minicpm {
namespace opencl {

// What TVM sees as a device pointer.
struct Buffer {
  cl_mem memory;
};

struct Device {
  cl_device_id id;
  cl_context context;
  cl_command_queue queue;
};

class Devices final : public tvm::runtime::DeviceAPI {
 public:
  static Devices* Global();

  // Throws RuntimeError for a device that isn't there.
  const Device& At(int index) const;
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

  const Driver* driver_;
  std::vector<Device> devices_;
};

}  // namespace opencl
}  // namespace minicpm
