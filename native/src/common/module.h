// A library's part for one kind of device, as TVM's module.
#pragma once

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <memory>
#include <string>

#include "kernel_info.h"

namespace minicpm {

// `Kernels` is made of the part's bytes and shared with the functions taken from the module. It has kKind, TVM's name of the
// device; signatures(), by kernel; source(), text where there is one; and Launch(info, arguments).
template <typename Kernels>
class DeviceModule final : public tvm::ffi::ModuleObj {
 public:
  explicit DeviceModule(const tvm::ffi::Bytes& bytes) : bytes_(bytes), kernels_(std::make_shared<Kernels>(bytes)) {}

  // Unless TVM reads these parts itself.
  static void Register() {
    std::string loader = std::string("ffi.Module.load_from_bytes.") + Kernels::kKind;
    if (tvm::ffi::Function::GetGlobal(loader).has_value()) return;
    tvm::ffi::reflection::GlobalDef().def(loader.c_str(), [](const tvm::ffi::Bytes& bytes) {
      return tvm::ffi::Module(tvm::ffi::make_object<DeviceModule>(bytes));
    });
  }

  const char* kind() const final { return Kernels::kKind; }
  int GetPropertyMask() const final { return tvm::ffi::Module::kBinarySerializable | tvm::ffi::Module::kRunnable; }
  tvm::ffi::Bytes SaveToBytes() const final { return bytes_; }
  tvm::ffi::String InspectSource(const tvm::ffi::String&) const final { return kernels_->source(); }

  tvm::ffi::Optional<tvm::ffi::Function> GetFunction(const tvm::ffi::String& name) final {
    auto found = kernels_->signatures().find(std::string(name));
    if (found == kernels_->signatures().end()) return std::nullopt;
    return tvm::ffi::Function::FromPacked(
        [kernels = kernels_, info = found->second](tvm::ffi::PackedArgs args, tvm::ffi::Any*) {
          kernels->Launch(info, reinterpret_cast<const TVMFFIAny*>(args.data()));
        });
  }

 private:
  tvm::ffi::Bytes bytes_;
  std::shared_ptr<Kernels> kernels_;
};

}  // namespace minicpm
