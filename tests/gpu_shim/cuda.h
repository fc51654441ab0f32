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

// what targets/cuda_prelude.cuh has as instructions
static inline float half_bits_to_float(ushort bits) { return shim::half_number(bits); }
static inline int dot_unsigned(uint weights, int values, int sum) {
  for (int i = 0; i < 32; i += 8) sum += (int)(weights >> i & 255) * (signed char)(values >> i);
  return sum;
}
static inline int dot_signed(uint weights, int values, int sum) {
  for (int i = 0; i < 32; i += 8) sum += (signed char)(weights >> i) * (signed char)(values >> i);
  return sum;
}


// A warp's functions. Each meets all threads of the workgroup, so that its warps must call as many.
namespace shim {
static uint tile_a[MAX_THREADS][4], tile_b[MAX_THREADS][2];
static const ushort* rows[MAX_THREADS];
static double lanes[MAX_THREADS];

static inline ushort half_bits(float x) {
  _Float16 number = (_Float16)x;
  ushort bits;
  memcpy(&bits, &number, sizeof bits);
  return bits;
}
static inline float half_of(uint word, int high) { return half_number(word >> 16 * high); }
template <class T, class Fold>
static inline T over_quad(T x, Fold fold) {
  int first = current & ~3;
  lanes[current] = x;
  barrier();
  T result = (T)lanes[first];
  for (int i = 1; i < 4; ++i) result = fold(result, (T)lanes[first + i]);
  barrier();
  return result;
}
}  // namespace shim

static inline void multiply_halves(float* sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  int me = shim::current, warp = me & ~31, g = (me & 31) / 4, t = me & 3;
  uint a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  memcpy(shim::tile_a[me], a, sizeof a);
  memcpy(shim::tile_b[me], b, sizeof b);
  shim::barrier();
  for (int i = 0; i < 4; ++i) {
    int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      uint left = shim::tile_a[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      uint right = shim::tile_b[warp + column * 4 + k % 8 / 2][k / 8];
      sums[i] += shim::half_of(left, k % 2) * shim::half_of(right, k % 2);
    }
  }
  shim::barrier();
}
static inline void multiply_floats(float* sums, float a0, float a1, float a2, float a3, float b0, float b1) {
  int me = shim::current, warp = me & ~31, g = (me & 31) / 4, t = me & 3;
  float a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  memcpy(shim::tile_a[me], a, sizeof a);
  memcpy(shim::tile_b[me], b, sizeof b);
  shim::barrier();
  for (int i = 0; i < 4; ++i) {
    int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k) {
      uint left = shim::tile_a[warp + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2] & ~0x1fffu;
      uint right = shim::tile_b[warp + column * 4 + k % 4][k / 4] & ~0x1fffu;
      float x, y;
      memcpy(&x, &left, sizeof x);
      memcpy(&y, &right, sizeof y);
      sums[i] += x * y;
    }
  }
  shim::barrier();
}
template <class Dot>
static inline void multiply_bytes(
    int* sums, const int* start, uint a0, uint a1, uint a2, uint a3, int b0, int b1, Dot dot) {
  int me = shim::current, warp = me & ~31, g = (me & 31) / 4, t = me & 3;
  uint a[4] = {a0, a1, a2, a3}, b[2] = {(uint)b0, (uint)b1};
  memcpy(shim::tile_a[me], a, sizeof a);
  memcpy(shim::tile_b[me], b, sizeof b);
  shim::barrier();
  for (int i = 0; i < 4; ++i) {
    int row = g + i / 2 * 8, column = 2 * t + i % 2;
    sums[i] = start[i];
    for (int k = 0; k < 8; ++k) {
      uint left = shim::tile_a[warp + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
      uint right = shim::tile_b[warp + column * 4 + k % 4][k / 4];
      sums[i] = dot(left, (int)right, sums[i]);
    }
  }
  shim::barrier();
}
static inline void multiply_bytes_unsigned(
    int* sums, const int* start, uint a0, uint a1, uint a2, uint a3, int b0, int b1) {
  multiply_bytes(sums, start, a0, a1, a2, a3, b0, b1, dot_unsigned);
}
static inline void multiply_bytes_signed(
    int* sums, const int* start, uint a0, uint a1, uint a2, uint a3, int b0, int b1) {
  multiply_bytes(sums, start, a0, a1, a2, a3, b0, b1, dot_signed);
}
static inline void load_transposed(uint* tiles, const void* row) {
  int me = shim::current, warp = me & ~31, lane = me & 31;
  shim::rows[me] = (const ushort*)row;
  shim::barrier();
  for (int i = 0; i < 4; ++i) {
    const ushort** first = shim::rows + warp + 8 * i + 2 * (lane & 3);
    tiles[i] = first[0][lane / 4] | (uint)first[1][lane / 4] << 16;
  }
  shim::barrier();
}
static inline void copy_16(void* to, const void* from, int bytes) {
  memset(to, 0, 16);
  memcpy(to, from, bytes);
}
static inline void warp_copied() { shim::barrier(); }
static inline void warp_meets() { shim::barrier(); }
static inline uint halves_of(float low, float high) {
  return shim::half_bits(low) | (uint)shim::half_bits(high) << 16;
}
static inline int kept(int x) { return x; }
static inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
static inline float quad_max(float x) { return shim::over_quad(x, fmaxf); }
static inline float quad_sum(float x) {
  return shim::over_quad(x, [](float a, float b) { return a + b; });
}
static inline int quad_max_int(int x) {
  return shim::over_quad(x, [](int a, int b) { return a < b ? b : a; });
}
static inline int quad_sum_int(int x) {
  return shim::over_quad(x, [](int a, int b) { return a + b; });
}
static inline int warp_sum_int(int x) {
  int first = shim::current & ~31, sum = 0;
  shim::lanes[shim::current] = x;
  shim::barrier();
  for (int i = 0; i < 32; ++i) sum += (int)shim::lanes[first + i];
  shim::barrier();
  return sum;
}
static inline int warp_sum_before(int x) {
  int first = shim::current & ~31, sum = 0;
  shim::lanes[shim::current] = x;
  shim::barrier();
  for (int i = first; i < shim::current; ++i) sum += (int)shim::lanes[i];
  shim::barrier();
  return sum;
}
static inline int threads_with(int x) {
  static int count;
  shim::barrier();
  count = 0;
  shim::barrier();
  count += x != 0;
  shim::barrier();
  return count;
}
static inline int warp_any(int x) {
  int first = shim::current & ~31, any = 0;
  shim::lanes[shim::current] = x;
  shim::barrier();
  for (int i = 0; i < 32; ++i) any |= shim::lanes[first + i] != 0;
  shim::barrier();
  return any;
}
static inline int last_to_come(int meeting, int members) {
  static int came[256], last;
  shim::barrier();
  if (!shim::current) {
    came[meeting] = (came[meeting] + 1) % members;
    last = !came[meeting];
  }
  shim::barrier();
  return last;
}
static inline float power_of_2(float x) { return exp2f(x); }

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};
template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T x, y, z, w;
};
typedef Pair<int> int2;
typedef Pair<uint> uint2;
typedef Pair<float> float2;
typedef Quad<int> int4;
typedef Quad<uint> uint4;
typedef Quad<float> float4;
typedef Quad<ushort> ushort4;

#define __global__ static
#define __launch_bounds__(threads)
#define __shared__ static
#define blockIdx (shim::Place{shim::group})
#define threadIdx (shim::Place{(unsigned)shim::current})
#define alignas(bytes) __attribute__((aligned(bytes)))  // also behind `static`, where C++ doesn't take the other
