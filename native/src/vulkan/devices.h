// TVM's device interface over Vulkan.
#pragma once

#include <tvm/runtime/device_api.h>

#include <memory>
#include <mutex>
#include <vector>

#include "device.h"

namespace minicpm {
namespace vulkan {

// The driver is opened when a device is first asked for, a device when something is first done with it.
class Devices final : public tvm::runtime::DeviceAPI {
 public:
  static Devices* Global();

  // Throws RuntimeError for a device that isn't there.
  Device& At(int index);
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
  const Driver& OpenedDriver();

  std::once_flag once_;
  Driver driver_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace vulkan
}  // namespace minicpm
