#include "device_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache_marks.h"
#include "files.h"

namespace minicpm {
namespace {

namespace ffi = tvm::ffi;

constexpr uint64_t kLargest = 4 << 20;                    // bytes of a case's arguments
constexpr char kUnwritten = 0x77;  // of every byte of an output: finite as a float, and far from any answer
constexpr size_t kGroup = 32, kWords = 10;  // int8 activations of a group, and the int32 words that hold it

constexpr const char *kCases = "kernel-cases.npz", *kRight = "devices", *kWrong = "wrong-devices";

// What distinguishes a device, its driver and a library from others.
std::string KeyOf(const Bundle& bundle, const Memory& memory) {
  const Manifest& manifest = bundle.manifest;
  auto cases = manifest.files.find(bundle.Named(kCases));
  return memory.identity() + "\n" + manifest.tvm + "\n" + manifest.files.at(manifest.library).sha256 + "\n" +
         (cases == manifest.files.end() ? "" : cases->second.sha256);
}

DLDataType TypeOf(const std::string& kind) {
  uint8_t code = kind[0] == 'f' ? kDLFloat : kind[0] == 'i' ? kDLInt : kDLUInt;
  return {code, static_cast<uint8_t>(8 * (kind[1] - '0')), 1};
}

Tensor TensorOf(const std::string& bytes, const std::vector<int64_t>& shape, const std::string& kind) {
  Tensor tensor = NewTensor(shape, TypeOf(kind));
  std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

Tensor Unwritten(const Expected& expected) {
  std::vector<int64_t> shape = expected.values.shape;
  if (expected.words) shape.back() = kWords;
  Tensor tensor = NewTensor(shape, TypeOf(expected.words ? "i4" : expected.values.tile.kind));
  std::memset(tensor.data_ptr(), kUnwritten, ffi::GetDataSize(tensor));
  return tensor;
}

std::vector<double> Numbers(const std::string& bytes, const std::string& kind) {
  size_t size = static_cast<size_t>(kind[1] - '0');
  std::vector<double> numbers;
  for (size_t at = 0; at < bytes.size(); at += size) numbers.push_back(NumberAt(kind, bytes.data() + at));
  return numbers;
}

// What words stand for: the values of each group and, made about as large as one, the multiple of their sum.
std::vector<double> WordValues(const std::string& bytes) {
  std::vector<double> values;
  for (size_t at = 0; at + 4 * kWords <= bytes.size(); at += 4 * kWords) {
    double scale = NumberAt("f4", bytes.data() + at + kGroup);
    for (size_t i = 0; i < kGroup; ++i) values.push_back(NumberAt("i1", bytes.data() + at + i) * scale);
    values.push_back(NumberAt("i4", bytes.data() + at + kGroup + 4) / 64 * scale);
  }
  return values;
}

// The whole argument as it should be after the call.
std::string Wanted(const KernelCase& kernel_case, const Expected& expected) {
  std::string values = expected.values.Whole();
  if (!expected.places) return values;
  std::string whole = kernel_case.inputs[expected.argument].Whole();
  size_t size = expected.values.tile.itemsize();
  for (size_t i = 0; i * size < values.size(); ++i) {
    whole.replace(static_cast<size_t>(expected.places->Value(i)) * size, size, values, i * size, size);
  }
  return whole;
}

// Squared error over the squared size of what was to be written; of new whole numbers the share that differs.
double Nmse(const std::string& got, const KernelCase& kernel_case, const Expected& expected) {
  const std::string& kind = expected.values.tile.kind;
  std::vector<double> seen = expected.words ? WordValues(got) : Numbers(got, kind);
  std::vector<double> wanted = Numbers(Wanted(kernel_case, expected), kind);
  if (seen.size() != wanted.size()) return INFINITY;
  double error = 0, size = 0, differ = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += (seen[i] - wanted[i]) * (seen[i] - wanted[i]);
    differ += seen[i] != wanted[i];
  }
  if (kind[0] != 'f' && !expected.places && !expected.words) {
    return differ / std::max<double>(1, static_cast<double>(wanted.size()));
  }
  for (double value : Numbers(expected.values.Whole(), kind)) size += value * value;
  return error / std::max(size, 1e-30);
}

}  // namespace

double Tried(const KernelCase& kernel_case, const Library& library) {
  const Memory& memory = library.memory();
  std::vector<Tensor> tensors;
  for (const Tiled& input : kernel_case.inputs) {
    tensors.push_back(memory.Given(TensorOf(input.Whole(), input.shape, input.tile.kind)));
  }
  for (const Expected& expected : kernel_case.expected) {
    if (!expected.places) tensors.push_back(memory.Given(Unwritten(expected)));
  }
  library.CallKernel(kernel_case.kernel, tensors);
  double largest = 0;
  for (const Expected& expected : kernel_case.expected) {
    Tensor got = memory.Read(tensors.at(expected.argument));
    double nmse = Nmse({static_cast<const char*>(got.data_ptr()), ffi::GetDataSize(got)}, kernel_case, expected);
    if (!(nmse <= largest)) largest = nmse;  // a NaN too
    if (std::isnan(largest)) break;
  }
  return largest;
}

void RefuseWrongDevice(const Bundle& bundle) {
  Memory memory(bundle.manifest.device);
  if (memory.on_host()) return;
  std::string key = KeyOf(bundle, memory);
  std::optional<std::string> why = Marked(kWrong, key);
  if (why) throw DeviceError(*why + "; to check it again, remove " + FileOfMark(kWrong, key));
}

void CheckKernels(const Bundle& bundle, const Library& library) {
  if (library.memory().on_host() || !bundle.manifest.files.count(bundle.Named(kCases))) return;
  std::string key = KeyOf(bundle, library.memory());
  if (Marked(kRight, key)) return;
  KernelCases all(bundle);
  for (const KernelCase* each : all.Smallest(kLargest)) {
    double nmse = Tried(*each, library);
    if (nmse <= each->limit) continue;
    std::ostringstream text;
    text << library.memory().name() << " computes " << each->name << " wrong (NMSE " << nmse << ", limit " << each->limit
         << "), so no answer of it can be trusted; compile the model for the processor too: minicpm-mlc compile --with-cpu";
    Mark(kWrong, key, text.str());
    throw DeviceError(text.str());
  }
  Mark(kRight, key, "{\"device\": " + Json::Quote(library.memory().identity()) + "}");
}

}  // namespace minicpm
