#include "programs.h"

#include <tvm/ffi/error.h>

#include "../common/disk_cache.h"

namespace minicpm {
namespace opencl {
namespace {

constexpr const char* kOptions = "-cl-std=CL1.2";
constexpr size_t kLongestLog = 2000;

// Whose binary it is: another device or driver can't read it.
std::string Identity(const Driver& cl, cl_device_id device, const std::string& source) {
  std::string text = source;
  for (cl_device_info what : {CL_DEVICE_VENDOR, CL_DEVICE_NAME, CL_DEVICE_VERSION, CL_DRIVER_VERSION})
    text += "\n" + Text(cl, device, what);
  return text;
}

bool Builds(const Driver& cl, cl_program program, cl_device_id device) {
  return cl.clBuildProgram(program, 1, &device, kOptions, nullptr, nullptr) == CL_SUCCESS;
}

// nullptr where nothing is kept, or the driver refuses it.
cl_program FromBinary(const Driver& cl, const Device& device, const std::string& binary) {
  if (binary.empty()) return nullptr;
  size_t size = binary.size();
  auto bytes = reinterpret_cast<const unsigned char*>(binary.data());
  cl_int status, taken;
  cl_program program = cl.clCreateProgramWithBinary(device.context, 1, &device.id, &size, &bytes, &taken, &status);
  if (status != CL_SUCCESS) return nullptr;
  if (taken == CL_SUCCESS && Builds(cl, program, device.id)) return program;
  cl.clReleaseProgram(program);
  return nullptr;
}

cl_program FromSource(const Driver& cl, const Device& device, const std::string& source) {
  const char* text = source.data();
  size_t size = source.size();
  cl_int status;
  cl_program program = cl.clCreateProgramWithSource(device.context, 1, &text, &size, &status);
  Check(status, "reading the kernels");
  if (Builds(cl, program, device.id)) return program;
  std::string log(kLongestLog, '\0');
  cl.clGetProgramBuildInfo(program, device.id, CL_PROGRAM_BUILD_LOG, log.size(), log.data(), nullptr);
  cl.clReleaseProgram(program);
  TVM_FFI_THROW(RuntimeError) << "OpenCL: the driver can't build the kernels; try a newer one. It says: " << log.c_str();
  TVM_FFI_UNREACHABLE();
}

// Empty where the driver gives none.
std::string BinaryOf(const Driver& cl, cl_program program) {
  size_t size = 0;
  if (cl.clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof(size), &size, nullptr) != CL_SUCCESS) return {};
  std::string binary(size, '\0');
  char* bytes = binary.data();
  if (cl.clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof(bytes), &bytes, nullptr) != CL_SUCCESS) return {};
  return binary;
}

}  // namespace

cl_program Build(const Driver& cl, const Device& device, const std::string& source) {
  std::string name = "opencl-" + std::to_string(Hash(Identity(cl, device.id, source))) + ".bin";
  if (cl_program kept = FromBinary(cl, device, ReadCache(name))) return kept;
  cl_program program = FromSource(cl, device, source);
  if (std::string binary = BinaryOf(cl, program); !binary.empty()) WriteCache(name, binary);
  return program;
}

}  // namespace opencl
}  // namespace minicpm
