#include "kernel_info.h"

namespace minicpm {
namespace {

DLDataType ReadType(Reader* reader) {
  DLDataType type;
  type.code = reader->Number<uint8_t>();
  type.bits = reader->Number<uint8_t>();
  type.lanes = reader->Number<uint16_t>();
  return type;
}

int ExtentOf(const std::string& tag, const std::string& kernel) {
  bool block = tag.compare(0, 9, "blockIdx.") == 0, thread = tag.compare(0, 10, "threadIdx.") == 0;
  int axis = tag.empty() ? -1 : tag.back() - 'x';
  if ((!block && !thread) || axis < 0 || axis > 2) {
    TVM_FFI_THROW(RuntimeError) << "kernel " << kernel << " needs " << tag << ", which this runtime hasn't";
  }
  return (thread ? 3 : 0) + axis;
}

KernelInfo ReadKernel(Reader* reader) {
  KernelInfo info;
  info.name = reader->Text();
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) info.arg_types.push_back(ReadType(reader));
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) info.extents.push_back(ExtentOf(reader->Text(), info.name));
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) reader->Number<int32_t>();  // tensor maps: CUDA only
  return info;
}

}  // namespace

std::map<std::string, KernelInfo> ReadKernels(Reader* reader) {
  std::map<std::string, KernelInfo> kernels;
  for (uint64_t n = reader->Number<uint64_t>(); n > 0; --n) {
    std::string key = reader->Text();
    kernels[key] = ReadKernel(reader);
  }
  return kernels;
}

Grid ReadGrid(const KernelInfo& info, const TVMFFIAny* arguments) {
  Grid grid;
  for (size_t i = 0; i < info.extents.size(); ++i) {
    auto extent = static_cast<size_t>(arguments[info.arg_types.size() + i].v_int64);
    (info.extents[i] < 3 ? grid.blocks : grid.threads)[info.extents[i] % 3] = extent;
  }
  return grid;
}

}  // namespace minicpm
