// kernel-cases.npz: for every kernel of a bundle's library, arguments and what should come of them; as
// minicpm_mlc/bundle/kernel_cases.py, which writes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "npy.h"

namespace minicpm {

// An array of `shape`: `tile` repeated along every axis, the last repetition cut where the axis ends.
struct Tiled {
  uint64_t bytes() const;
  std::string Whole() const;  // the array's bytes

  Npy tile;
  std::vector<int64_t> shape;
};

// What argument number `argument` holds after the call: `values`, or an input with `values` at these flat places.
// `words`: it holds int8 activations as quantize_rows writes them, and `values` is what they stand for.
struct Expected {
  size_t argument;
  Tiled values;
  std::optional<Npy> places;
  bool words;
};

// One call of a kernel on inputs, then outputs; an NMSE above `limit` is an error.
struct KernelCase {
  uint64_t bytes() const;  // of all its arguments

  std::string kernel, name;  // `name`: the operator's
  double limit;
  std::vector<Tiled> inputs;
  std::vector<Expected> expected;
};

class KernelCases {
 public:
  // Fails where the file is damaged.
  explicit KernelCases(const Bundle& bundle);
  KernelCases(const KernelCases&) = delete;
  KernelCases& operator=(const KernelCases&) = delete;

  // One case of each operator, the least bytes first; none of more than `most` bytes.
  std::vector<const KernelCase*> Smallest(uint64_t most) const;

 private:
  std::string bytes_;  // which the cases lie in
  std::vector<KernelCase> cases_;
};

}  // namespace minicpm
