// Online softmax on a warpgroup's accumulator fragments: a lane holds parts of two rows, h = 0 and 1.
#pragma once

#include <math_constants.h>

#include "common/dtype.cuh"
#include "common/mma_sync.cuh"

namespace baracuda::sm90 {

struct RowStatistics {
  float m[2];  // true maximum so far, unscaled; -inf: nothing seen
  float l[2];  // this lane's part of the row sum
};

// Columns from visible[h] on are not seen.
template <int S>
__device__ __forceinline__ void mask_scores(float (&s)[S], const int (&visible)[2]) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int left = visible[h] - column;
#pragma unroll
    for (int j = 0; j < S / 4; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (8 * j + c >= left) s[4 * j + 2 * h + c] = -CUDART_INF_F;
  }
}

// Turns scores into weights exp2(s - m) in place; m and l move on. factor is what earlier weights
// must be multiplied by. (Two partial results a row shorten the chains of dependent instructions.)
template <int S>
__device__ __forceinline__ void softmax_step(float (&s)[S], RowStatistics& rows, float scale_log2,
                                             float (&factor)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float top0 = rows.m[h], top1 = s[2 * h + 1];
#pragma unroll
    for (int j = 0; j < S / 4; ++j) {
      top0 = fmaxf(top0, s[4 * j + 2 * h]);
      top1 = fmaxf(top1, s[4 * j + 2 * h + 1]);
    }
    float top = fmaxf(top0, top1);
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float use = top == -CUDART_INF_F ? 0.0f : top;
    factor[h] = exp2_approx((rows.m[h] - use) * scale_log2);
    rows.m[h] = top;
    const float offset = -use * scale_log2;
    float sum0 = rows.l[h] * factor[h], sum1 = 0.0f;
#pragma unroll
    for (int j = 0; j < S / 4; ++j) {
      s[4 * j + 2 * h] = exp2_approx(fmaf(s[4 * j + 2 * h], scale_log2, offset));
      s[4 * j + 2 * h + 1] = exp2_approx(fmaf(s[4 * j + 2 * h + 1], scale_log2, offset));
      sum0 += s[4 * j + 2 * h];
      sum1 += s[4 * j + 2 * h + 1];
    }
    rows.l[h] = sum0 + sum1;
  }
}

// ptxas moves the wait for PV above the exponentials, and then nothing overlaps PV. This store is
// never made (row sums are not negative), but it needs every weight and may not cross the wait.
__device__ __forceinline__ void hold_until_summed(const RowStatistics& rows, uint32_t address) {
  asm volatile(
      "{\n"
      ".reg .pred never;\n"
      "setp.lt.f32 never, %0, 0fBF800000;\n"
      "@never st.shared.f32 [%1], %0;\n"
      "}\n" ::"f"(rows.l[0] + rows.l[1]),
      "r"(address)
      : "memory");
}

template <int N>
__device__ __forceinline__ void rescale(float (&o)[N], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < N; ++i) o[i] *= factor[i / 2 % 2];
}

// Weights rounded to the operand type, as the A fragments of the product with V.
template <typename Element, int S>
__device__ __forceinline__ void pack_weights(const float (&s)[S], uint32_t (&p)[S / 8][4]) {
#pragma unroll
  for (int k = 0; k < S / 8; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[k][i] = Dtype<Element>::pack(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

}  // namespace baracuda::sm90
