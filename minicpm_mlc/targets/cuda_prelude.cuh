// What kernels find before them: the names of TVM's integer types, and functions that are one
// instruction here (ops/gpu/intrinsics.py). tests/gpu_shim/cuda.h has the same for a CPU.
#define int8_t signed char
#define uint8_t unsigned char
#define int16_t short
#define uint16_t unsigned short
#define int32_t int
#define uint32_t unsigned int
#define int64_t long long
#define uint64_t unsigned long long
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

static __device__ __forceinline__ float half_bits_to_float(ushort bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// sum + the products of four bytes; those of `weights` are unsigned, or signed
static __device__ __forceinline__ int dot_unsigned(uint weights, int values, int sum) {
  int result;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(weights), "r"(values), "r"(sum));
  return result;
}

static __device__ __forceinline__ int dot_signed(uint weights, int values, int sum) {
  int result;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(weights), "r"(values), "r"(sum));
  return result;
}

// sums[4] += a 16 x 16 tile of float16 times a 16 x 8 one, spread over a warp as mma.m16n8k16 says
static __device__ __forceinline__ void multiply_halves(
    float* sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// the same of a 16 x 8 tile of float32 by an 8 x 8 one, as mma.m16n8k8 says: the last 13 bits of
// the factors are lost
static __device__ __forceinline__ void multiply_floats(
    float* sums, float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
        "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// four 8 x 8 tiles of 16-bit numbers, transposed; lane i says where row i % 8 of tile i / 8 lies
static __device__ __forceinline__ void load_transposed(uint* tiles, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
      : "r"((uint)__cvta_generic_to_shared(row))
      : "memory");
}

// 16 bytes to shared memory, of which the first `bytes` are read and the rest are zeros
static __device__ __forceinline__ void copy_16(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"((uint)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes)
      : "memory");
}

// copies that this thread asked for are there, and those of its warp once all have come here
static __device__ __forceinline__ void warp_copied() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
}

static __device__ __forceinline__ void warp_meets() { __syncwarp(); }

// two numbers rounded to float16, the first in the low half
static __device__ __forceinline__ uint halves_of(float low, float high) {
  uint both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// x, of which the compiler doesn't know how it came about
static __device__ __forceinline__ int kept(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// a b + c, rounded once
static __device__ __forceinline__ float fused(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}

// over the four lanes of a quad
static __device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

static __device__ __forceinline__ int quad_max_int(int x) {
  x = max(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return max(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ int quad_sum_int(int x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

static __device__ __forceinline__ int warp_sum_int(int x) {
  return __reduce_add_sync(0xffffffffu, x);
}

// over the lanes before this one
static __device__ __forceinline__ int warp_sum_before(int x) {
  int lane = threadIdx.x & 31, sum = x;
  __syncwarp();
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    int other = __shfl_up_sync(0xffffffffu, sum, step);
    sum += lane < step ? 0 : other;
  }
  return sum - x;
}

// how many threads of the workgroup have another number than 0
static __device__ __forceinline__ int threads_with(int x) { return __syncthreads_count(x); }

// whether a lane of the warp has another number than 0
static __device__ __forceinline__ int warp_any(int x) { return __any_sync(0xffffffffu, x); }

// how many workgroups have come to each meeting (WORKGROUPS of ops/gpu/attend_tiles.py, twice); 0
// again once all have
static __device__ uint came[256];

// whether the workgroup is the last of so many to come to a meeting; then it sees what the others
// wrote. The barriers make what its threads do one with what the first of them releases and acquires
static __device__ __forceinline__ int last_to_come(int meeting, int members) {
  int last = members == 1;
  __syncthreads();
  if (!last && threadIdx.x == 0) {
    uint before;
    asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;"
        : "=r"(before) : "l"(&came[meeting]), "r"(members - 1) : "memory");
    last = before == members - 1;
  }
  return __syncthreads_or(last);
}

static __device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// sums[4] = start[4] + a 16 x 32 tile of bytes times a 32 x 8 one of signed bytes, as mma.m16n8k32
// says
static __device__ __forceinline__ void multiply_bytes_unsigned(
    int* sums, const int* start, uint a0, uint a1, uint a2, uint a3, int b0, int b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1),
        "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
}

static __device__ __forceinline__ void multiply_bytes_signed(
    int* sums, const int* start, uint a0, uint a1, uint a2, uint a3, int b0, int b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1),
        "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
}
