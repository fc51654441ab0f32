// What CUDA's compiler gives to kernels, for a C++ compiler on a CPU: just enough for the kernels here.
#pragma once

#include <threads.h>

namespace shim {
struct Place {
  unsigned x;
};
}  // namespace shim

static inline void __syncthreads() { shim::barrier(); }
template <class T>
static inline T min(T a, T b) { return b < a ? b : a; }
template <class T>
static inline T max(T a, T b) { return a < b ? b : a; }

#define __global__ static
#define __launch_bounds__(threads)
#define __shared__ static
#define blockIdx (shim::Place{shim::group})
#define threadIdx (shim::Place{(unsigned)shim::current})
#define alignas(bytes) __attribute__((aligned(bytes)))  // also behind `static`, where C++ doesn't take the other
