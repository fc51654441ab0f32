// What TVM's compiler stores in a library for OpenCL: format, kernels' signatures, source.
#pragma once

#include <tvm/ffi/dtype.h>
#include <tvm/ffi/string.h>

#include <map>
#include <string>
#include <vector>

namespace minicpm {

struct KernelInfo {
  std::string name;
  std::vector<DLDataType> arg_types;
  // "blockIdx.x", "threadIdx.x", ...: the extents that follow the arguments of a launch.
  std::vector<std::string> launch_tags;
};

struct Artifact {
  std::string format;
  std::map<std::string, KernelInfo> kernels;
  std::string source;
};

// Throws RuntimeError when the bytes end early.
Artifact ReadArtifact(const tvm::ffi::Bytes& bytes);

}  // namespace minicpm
