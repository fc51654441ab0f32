// Where the tensors of a compiled library lie: in this process's memory, or in a device's, to which all is copied.
#pragma once

#include <tvm/ffi/function.h>

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "tensors.h"

namespace minicpm {

// A device that isn't there, fails, or computes wrong: another bundle may take this one's place.
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& text) : Error(MINICPM_FAILED, text) {}
};

uint64_t PageBytes(const Tensor& pool);

// Throws DeviceError where bundles of this kind of device, as manifests name it, can't run.
void CheckDevice(const std::string& device);

class Memory {
 public:
  // Of the first device of its kind. Throws DeviceError where there is none.
  explicit Memory(const std::string& device);

  bool on_host() const { return type_ == kDLCPU; }
  const std::string& name() const { return name_; }          // the device's
  const std::string& identity() const { return identity_; }  // the same with the driver's version
  uint64_t Free() const;                                     // bytes that can be taken

  // Tells a virtual machine where it works.
  void Start(const tvm::ffi::Function& initialization) const;
  // Zeros in this process's memory, which the system commits as it is written; on a device anything.
  Tensor New(const std::vector<int64_t>& shape, DLDataType dtype) const;
  Tensor Given(const Tensor& host) const;   // for compiled code
  Tensor Read(const Tensor& result) const;  // for this process
  // Pages of a pool, [pages, ...], to this process's memory, one after the other, and from there.
  void ReadPages(const Tensor& pool, const std::vector<int32_t>& pages, char* bytes) const;
  void WritePages(const Tensor& pool, const std::vector<int32_t>& pages, const char* bytes) const;

  // Calls what uses the device; what its runtime throws becomes a DeviceError.
  template <typename Body>
  auto Guarded(Body body) const {
    if (on_host()) return body();
    try {
      return body();
    } catch (const tvm::ffi::Error& error) {
      FailOf(error);
    }
  }

 private:
  [[noreturn]] void FailOf(const tvm::ffi::Error& error) const;
  Tensor Part(const Tensor& pool, int32_t first, int64_t count) const;

  int type_;  // DLPack's number
  std::string name_, identity_;
  tvm::ffi::Function new_, write_, read_, view_;
};

}  // namespace minicpm
