#include "driver.h"

#include <tvm/ffi/error.h>

#include <cstdlib>
#include <optional>

#include "../common/shared_library.h"

namespace minicpm {
namespace opencl {
namespace {

constexpr const char* kLibraries[] = {
#if defined(_WIN32)
    "OpenCL.dll",
#elif defined(__APPLE__)
    "/System/Library/Frameworks/OpenCL.framework/OpenCL",
#else
    "libOpenCL.so.1",
    "libOpenCL.so",
#endif
};

void* FindLibrary() {
  if (const char* name = std::getenv("MINICPM_OPENCL_LIBRARY")) return OpenLibrary(name);
  for (const char* name : kLibraries) {
    if (void* library = OpenLibrary(name)) return library;
  }
  return nullptr;
}

std::optional<Driver> Open() {
  void* library = FindLibrary();
  if (library == nullptr) return std::nullopt;
  Driver driver;
#define MINICPM_FIND(name)                                         \
  driver.name = FindSymbol<decltype(driver.name)>(library, #name); \
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
      return "the device was lost, and what it held; start the program again, and if it happens again try a newer "
             "driver";
    case CL_INVALID_WORK_GROUP_SIZE:
      return "the device takes fewer threads together than the library was compiled for; compile it for another device";
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

}  // namespace opencl
}  // namespace minicpm
