// The row statistics of the sm90a backward step kernel.
#pragma once

#include "common/dtype.cuh"

namespace baracuda::sm90::backward {

// Splits -x into three parts of eight bits; the sum of their products with ones is exact.
__device__ __forceinline__ uint2 negative_parts(float x) {
  const float high = __bfloat162float(__float2bfloat16_rn(-x));
  const float middle = __bfloat162float(__float2bfloat16_rn(-x - high));
  const float low = -x - high - middle;
  using Part = Dtype<__nv_bfloat16>;
  return make_uint2(Part::pack(high, middle), Part::pack(low, 0.0f));
}

// [row][8] of bf16, a K-major operand: four columns hold -lse / scale and four hold -delta.
// Products with ones subtract them from S and dP.
struct SplitStatistics {
  static constexpr int row_bytes = 16;
  static double lse_factor(double scale) { return 1.0 / scale; }
  // Finite, so that its product with zero is zero.
  static __device__ __forceinline__ float hidden_lse() { return 0x1p127f; }
  static __device__ __forceinline__ void store(void* statistics, int64_t row, int64_t, float lse,
                                               float delta) {
    uint2* const out = static_cast<uint2*>(statistics) + row * 2;
    out[0] = negative_parts(lse);
    out[1] = negative_parts(delta);
  }
};

// The same with separate tiles for lse and delta of a query tile: [row][8], three parts and zeros.
// Ones in all columns subtract lse or delta, the same in all lanes.
struct ApartStatistics {
  static constexpr int row_bytes = 32;
  static double lse_factor(double scale) { return 1.0 / scale; }
  static __device__ __forceinline__ float hidden_lse() { return 0x1p127f; }
  static __device__ __forceinline__ void store(void* statistics, int64_t row, int64_t, float lse,
                                               float delta) {
    uint4* const out = static_cast<uint4*>(statistics) + row / 64 * 128 + row % 64;
    const uint2 a = negative_parts(lse), b = negative_parts(delta);
    out[0] = make_uint4(a.x, a.y, 0, 0);
    out[64] = make_uint4(b.x, b.y, 0, 0);
  }
};

}  // namespace baracuda::sm90::backward
