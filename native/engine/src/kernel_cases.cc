#include "kernel_cases.h"

#include <algorithm>

#include "files.h"

namespace minicpm {
namespace {

constexpr const char* kFile = "kernel-cases.npz";
constexpr int64_t kMost = INT32_MAX;
constexpr int64_t kValues = 33;  // numbers that a group of words stands for

using Files = std::map<std::string, std::string_view>;

class Arrays {
 public:
  Arrays(const std::string& path, std::string_view bytes) : path_(path), files_(FilesOfZip(bytes)) {}

  std::string_view File(const std::string& name) const {
    auto found = files_ ? files_->find(name + ".npy") : Files::const_iterator{};
    if (!files_ || found == files_->end()) FailDamaged();
    return found->second;
  }

  Npy Array(const Json& number) const {
    std::optional<Npy> array = Npy::Of(File(std::to_string(number.Whole(0, kMost))));
    if (!array) FailDamaged();
    return *array;
  }

  Tiled TiledOf(const Json& json) const {
    std::vector<Json> pair = json.List();
    if (pair.size() != 2) json.Refuse("an array's number and a shape");
    Tiled tiled{Array(pair[0]), {}};
    for (const Json& size : pair[1].List()) tiled.shape.push_back(size.Whole(0, kMost));
    const std::vector<int64_t>& tile = tiled.tile.shape;
    bool fits = tile.size() == tiled.shape.size();
    for (size_t i = 0; fits && i < tile.size(); ++i) fits = tile[i] <= tiled.shape[i] && (tile[i] || !tiled.shape[i]);
    if (!fits) pair[1].Refuse("a shape that is made of its tiles");
    return tiled;
  }

  Expected ExpectedOf(const Json& json) const {
    std::vector<Json> parts = json.List();
    if (parts.size() != 4) json.Refuse("an argument, values, places and whether they are words");
    std::optional<Npy> places;
    if (!parts[2].IsNull()) places = Array(parts[2]);
    return {static_cast<size_t>(parts[0].Whole(0, kMost)), TiledOf(parts[1]), places, parts[3].Bool()};
  }

  [[noreturn]] void FailDamaged() const { Fail(MINICPM_BUNDLE, path_, " is damaged; ", kRepair); }

 private:
  std::string path_;
  std::optional<Files> files_;
};

uint64_t SizeOf(const std::vector<int64_t>& shape) {
  uint64_t size = 1;
  for (int64_t each : shape) {
    if (__builtin_mul_overflow(size, static_cast<uint64_t>(each), &size)) return UINT64_MAX;
  }
  return size;
}

// Whether the places are of an input and as many as the values, and lie within it.
bool Holds(const KernelCase& kernel_case, const Expected& expected) {
  const Tiled& values = expected.values;
  if (!expected.places) return !expected.words || (values.shape.size() > 1 && values.shape.back() == kValues);
  const Npy& places = *expected.places;
  if (expected.words || expected.argument >= kernel_case.inputs.size() || places.kind != "i4") return false;
  if (values.shape != places.shape || places.shape.size() != 1) return false;
  const Tiled& input = kernel_case.inputs[expected.argument];
  if (input.tile.kind != values.tile.kind) return false;
  double size = static_cast<double>(SizeOf(input.shape));
  for (size_t i = 0; i < static_cast<size_t>(places.shape[0]); ++i) {
    if (places.Value(i) < 0 || places.Value(i) >= size) return false;
  }
  return true;
}

bool IsWhole(const KernelCase& kernel_case) {
  size_t next = kernel_case.inputs.size();
  for (const Expected& expected : kernel_case.expected) {
    if (!Holds(kernel_case, expected)) return false;
    if (!expected.places && expected.argument != next++) return false;
  }
  return !kernel_case.expected.empty();
}

}  // namespace

uint64_t Tiled::bytes() const {
  uint64_t size = SizeOf(shape), bytes;
  return __builtin_mul_overflow(size, uint64_t{tile.itemsize()}, &bytes) ? UINT64_MAX : bytes;
}

std::string Tiled::Whole() const {
  std::string whole(tile.data);
  size_t inner = tile.itemsize();  // bytes of what is behind an axis
  for (size_t axis = shape.size(); axis-- > 0;) {
    size_t from = static_cast<size_t>(tile.shape[axis]), to = static_cast<size_t>(shape[axis]);
    std::string wider;
    for (size_t start = 0; from && start < whole.size(); start += from * inner) {
      for (size_t i = 0; i < to; ++i) wider.append(whole, start + i % from * inner, inner);
    }
    whole = std::move(wider);
    inner *= to;
  }
  return whole;
}

uint64_t KernelCase::bytes() const {
  uint64_t sum = 0;
  auto add = [&](uint64_t bytes) { sum = __builtin_add_overflow(sum, bytes, &sum) ? UINT64_MAX : sum; };
  for (const Tiled& input : inputs) add(input.bytes());
  for (const Expected& each : expected) add(each.values.bytes());
  return sum;
}

KernelCases::KernelCases(const Bundle& bundle) {
  std::string path = bundle.File(kFile);
  bytes_ = ReadSmall(path).value_or("");
  Arrays arrays(path, bytes_);
  std::optional<Npy> index = Npy::Of(arrays.File("index"));
  if (!index) arrays.FailDamaged();
  Json json = Json::Parse(std::string(index->data), path, MINICPM_BUNDLE, kRepair);
  for (const Json& entry : json.List()) {
    KernelCase read{entry.At("kernel").Text(), entry.At("record").At("operator").Text(), entry.At("limit").Number(), {}, {}};
    for (const Json& input : entry.At("inputs").List()) read.inputs.push_back(arrays.TiledOf(input));
    for (const Json& expected : entry.At("expected").List()) read.expected.push_back(arrays.ExpectedOf(expected));
    if (!IsWhole(read)) arrays.FailDamaged();
    cases_.push_back(std::move(read));
  }
}

std::vector<const KernelCase*> KernelCases::Smallest(uint64_t most) const {
  std::map<std::string, const KernelCase*> first;
  for (const KernelCase& each : cases_) {
    const KernelCase*& smallest = first[each.name];
    if (!smallest || each.bytes() <= smallest->bytes()) smallest = &each;
  }
  std::vector<const KernelCase*> sorted;
  for (const auto& [name, each] : first) {
    if (each->bytes() <= most) sorted.push_back(each);
  }
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const KernelCase* a, const KernelCase* b) { return a->bytes() < b->bytes(); });
  return sorted;
}

}  // namespace minicpm
