// The weights of a bundle, mapped from its files, in the order that the compiled library takes them.
#pragma once

#include <string>
#include <vector>

#include "bundle.h"
#include "tensors.h"

namespace minicpm {

struct Param {
  std::string dtype;
  std::vector<int64_t> shape;
  Tensor tensor;
};

// Fails where tensor-cache.json doesn't describe them.
std::vector<Param> LoadParams(const Bundle& bundle);

}  // namespace minicpm
