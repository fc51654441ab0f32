#include "driver.h"

#include <dlfcn.h>
#include <tvm/ffi/error.h>

#include <optional>

namespace minicpm {
namespace {

std::optional<Driver> Open() {
  void* library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) library = dlopen("libOpenCL.so", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::nullopt;
  Driver driver;
#define MINICPM_FIND(name)                                                     \
  driver.name = reinterpret_cast<decltype(driver.name)>(dlsym(library, #name)); \
  if (driver.name == nullptr) return std::nullopt;
  MINICPM_OPENCL_FUNCTIONS(MINICPM_FIND)
#undef MINICPM_FIND
  return driver;
}

const char* Explain(cl_int status) {
  switch (status) {
    case CL_MEM_OBJECT_ALLOCATION_FAILURE:
    case CL_OUT_OF_RESOURCES:
    case CL_OUT_OF_HOST_MEMORY:
      return "out of memory; use a smaller --context";
    case CL_INVALID_BUFFER_SIZE:
      return "more than the device allows in one buffer; use a smaller --context";
    case CL_DEVICE_NOT_AVAILABLE:
      return "the device was lost";
    case CL_INVALID_WORK_GROUP_SIZE:
      return "the device takes fewer threads together than the library was compiled for";
    default:
      return "see CL/cl.h";
  }
}

}  // namespace

const Driver* FindDriver() {
  static const std::optional<Driver> driver = Open();
  return driver ? &*driver : nullptr;
}

void Check(cl_int status, const char* what) {
  if (status != CL_SUCCESS) {
    TVM_FFI_THROW(RuntimeError) << "OpenCL: " << what << " failed with " << status << ": " << Explain(status);
  }
}

}  // namespace minicpm
