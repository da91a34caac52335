// The power of two by which P and dS of float16 are scaled, so that they do not underflow. P is
// about 1/K, and dS is smaller than dy by as much.
#pragma once

#include "baracuda/element.h"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"

namespace baracuda {

// The scratch holds three maxima of the call so far: the norm of a row of dy, |delta|, and the norm
// of a row of V.
enum Norm { norm_dy, norm_delta, norm_v, norms };
constexpr int64_t norms_bytes = 16;

// |dS| <= |dy| |v| + |delta| and P <= 1, so both stay below 2^15 when scaled. No shift if a norm is
// NaN.
__device__ __forceinline__ int shift_of(const float* found) {
  const float bound = fmaf(found[norm_dy], found[norm_v], found[norm_delta]);
  const int k = 14 - ((__float_as_int(bound) >> 23 & 255) - 127);
  return k < 0 ? 0 : k < 14 ? k : 14;
}

// Raises the norm to the maximum over all threads of the block. Values are 0 or more, or NaN, so
// their bits order them, with NaN above all.
template <int Threads>
__device__ __forceinline__ void raise_norm(float* norm, float value) {
  __shared__ int of_warps[Threads / 32];
  const int largest = __reduce_max_sync(0xffffffffu, __float_as_int(fabsf(value)));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x < 32) {
    const int mine = threadIdx.x < Threads / 32 ? of_warps[threadIdx.x] : 0;
    const int all = __reduce_max_sync(0xffffffffu, mine);
    int* const to = reinterpret_cast<int*>(norm);
    if (threadIdx.x == 0 && all > __ldcg(to)) atomicMax(to, all);
  }
  __syncthreads();
}

// Sum of squares of eight 16-bit elements.
template <typename Element>
__device__ __forceinline__ float square8(const uint4& a) {
  const Element* const x = reinterpret_cast<const Element*>(&a);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float value = Dtype<Element>::load(x[i]);
    sum = fmaf(value, value, sum);
  }
  return sum;
}

// Number of lanes that read a row together, eight elements each. If head_dim / 8 is not a power of
// two, some lanes read nothing.
template <int HeadDim>
constexpr int row_lanes = HeadDim <= 64 ? 8 : HeadDim <= 128 ? 16 : 32;

struct NormArgs {
  const void* v;
  float* found;
  baracuda_strides strides;
  int64_t rows;  // rows of V, in all heads
  int kv_heads, key_len;
};

constexpr int norm_threads = 256;

// Raises norm_v to the largest norm of a row of this step's V.
template <typename Element, int HeadDim>
static __global__ void __launch_bounds__(norm_threads) norm_kernel(const NormArgs args) {
  constexpr int lanes = row_lanes<HeadDim>;
  launch_dependent_grids();
  await_previous_grids();
  const int64_t apart = int64_t{gridDim.x} * (norm_threads / lanes);
  float largest = 0.0f;
  for (int64_t row0 = int64_t{blockIdx.x} * (norm_threads / lanes); row0 < args.rows;
       row0 += apart) {
    const int64_t row = row0 + threadIdx.x / lanes;
    float sum = 0.0f;
    if (row < args.rows && threadIdx.x % lanes * 8 < HeadDim) {
      const int64_t head = row / args.key_len, key = row - head * args.key_len;
      const int64_t offset = head / args.kv_heads * args.strides.batch +
                             head % args.kv_heads * args.strides.head + key * args.strides.seq;
      const Element* const at = static_cast<const Element*>(args.v) + offset;
      sum = square8<Element>(
          __ldg(reinterpret_cast<const uint4*>(at + threadIdx.x % lanes * 8)));
    }
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
    largest = __int_as_float(max(__float_as_int(largest), __float_as_int(fabsf(sum))));
  }
  raise_norm<norm_threads>(args.found + norm_v, sqrtf(largest));
}

}  // namespace baracuda
