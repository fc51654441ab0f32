// The context where the caller doesn't say one, and whether one that he says fits: as minicpm_mlc/runtime_py/defaults.py.
#pragma once

#include <cstdint>
#include <optional>

#include "manifest.h"

namespace minicpm {

// Tokens of context: as asked, else what the model and `available` bytes of memory allow. Fails where it doesn't fit.
int64_t ChooseContext(const Manifest& manifest, std::optional<int64_t> asked, uint64_t available);

}  // namespace minicpm
