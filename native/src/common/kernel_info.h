// Kernels' signatures, as TVM's compiler stores them in a library, and what a launch says.
#pragma once

#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "bytes.h"

namespace minicpm {

struct KernelInfo {
  std::string name;
  std::vector<DLDataType> arg_types;
  // Where the extents that follow the arguments of a launch go: 0..2 for blockIdx.x..z, 3..5 for threadIdx.x..z.
  std::vector<int> extents;
};

// By the name that the library calls them with. Throws RuntimeError for a launch tag that isn't one of the six.
std::map<std::string, KernelInfo> ReadKernels(Reader* reader);

struct Grid {
  std::array<size_t, 3> blocks{1, 1, 1}, threads{1, 1, 1};

  bool empty() const { return blocks[0] * blocks[1] * blocks[2] * threads[0] * threads[1] * threads[2] == 0; }
};

// Of the arguments of a launch: the kernel's own, then the extents.
Grid ReadGrid(const KernelInfo& info, const TVMFFIAny* arguments);

}  // namespace minicpm
