// NumPy's random numbers of a seed: PCG64 (O'Neill's PCG XSL RR 128/64), seeded by SeedSequence.
#pragma once

#include <cstdint>
#include <optional>

namespace minicpm {

class Random {
 public:
  explicit Random(std::optional<uint64_t> seed);  // nothing: other numbers each time
  double Next();                                  // in [0, 1)

 private:
  unsigned __int128 state_, increment_;
};

}  // namespace minicpm
