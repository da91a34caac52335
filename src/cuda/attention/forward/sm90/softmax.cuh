// Online softmax on a warpgroup's accumulator fragments: a lane holds parts of two rows, h = 0, 1.
#pragma once

#include <math_constants.h>

#include "common/dtype.cuh"
#include "common/exponential.cuh"

namespace baracuda::sm90 {

// After merge_under_previous_max(), m is the m of the state, which may be less than the largest
// score (state.cuh).
struct RowStatistics {
  float m[2];  // maximum of the scores, unscaled; -inf: no key seen yet
  float l[2];  // this lane's part of the row sum
};

// Sets the scores of the columns from visible[h] on to -inf.
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

// True if m is +0 or above in all rows of the warp.
__device__ __forceinline__ bool maxima_are_positive(const RowStatistics& rows) {
  return !__any_sync(0xffffffffu, (__float_as_int(rows.m[0]) | __float_as_int(rows.m[1])) < 0);
}

// Sets top[h] to the maximum of m and this lane's scores in row h. positive: whether m is +0 or
// above in all rows of the warp. If it is, scores are compared as integers, because sm_90 has an
// instruction for the maximum of three integers, but not of three floats. This is right because at
// least one of the floats (m) has a clear sign bit: the largest float is then also the largest when
// the bits are read as signed integers. A NaN whose sign bit is clear becomes the maximum. The
// weight of a NaN makes the sums of its row NaN in any case.
template <int S>
__device__ __forceinline__ void row_maxima(const float (&s)[S], const RowStatistics& rows,
                                           bool positive, float (&top)[2]) {
  static_assert(S % 8 == 0, "S must be a multiple of 8: two rows of an even number of pairs of columns");
  if (positive) {
    int bits[4] = {__float_as_int(rows.m[0]), __float_as_int(s[1]), __float_as_int(rows.m[1]),
                   __float_as_int(s[3])};
#pragma unroll
    for (int i = 0; i < S; i += 8)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        bits[j] = __vimax3_s32(bits[j], __float_as_int(s[i + j]), __float_as_int(s[i + 4 + j]));
#pragma unroll
    for (int h = 0; h < 2; ++h) top[h] = __int_as_float(max(bits[2 * h], bits[2 * h + 1]));
  } else {
    float most[4] = {rows.m[0], s[1], rows.m[1], s[3]};
#pragma unroll
    for (int i = 0; i < S; ++i) most[i % 4] = fmaxf(most[i % 4], s[i]);
#pragma unroll
    for (int h = 0; h < 2; ++h) top[h] = fmaxf(most[2 * h], most[2 * h + 1]);
  }
}

// Replaces scores by weights exp2((s - m) * scale_log2), and updates m and l. factor: the factor
// that rescales earlier weights to the new m. positive: maxima_are_positive(), or false if that is
// not known. The code interleaves the two rows, with two partial results each, to shorten the
// chains of dependent instructions.
template <int S>
__device__ __forceinline__ void softmax_step(float (&s)[S], RowStatistics& rows, float scale_log2,
                                             float (&factor)[2], bool positive) {
  float top[2];
  row_maxima(s, rows, positive, top);
  float use[2], sum[4];
#pragma unroll
  for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
#pragma unroll
  for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    use[h] = top[h] == -CUDART_INF_F ? 0.0f : top[h];
    factor[h] = exp2_approx((rows.m[h] - use[h]) * scale_log2);
    rows.m[h] = top[h];
    sum[2 * h] = rows.l[h] * factor[h];
    sum[2 * h + 1] = 0.0f;
    use[h] *= -scale_log2;
  }
#pragma unroll
  for (int i = 0; i < S; ++i) {
    s[i] = exp2_approx(fmaf(s[i], scale_log2, use[i / 2 % 2]));
    sum[i % 4] += s[i];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) rows.l[h] = sum[2 * h] + sum[2 * h + 1];
}

// Without this, ptxas moves the wait for PV above the exponentials, and nothing overlaps with PV.
// The store never executes, since row sums are not negative. But it depends on every weight, and
// ptxas may not move it across the wait.
__device__ __forceinline__ void order_sums_before_wait(const RowStatistics& rows,
                                                       uint32_t address) {
  asm volatile(
      "{\n"
      ".reg .pred never;\n"
      "setp.lt.f32 never, %0, 0fBF800000;\n"
      "@never st.shared.f32 [%1], %0;\n"
      "}\n" ::"f"(rows.l[0] + rows.l[1]),
      "r"(address)
      : "memory");
}

// The factors by which this step's sums and the previous sums are multiplied before they are added.
struct Factors {
  float now[2], previous[2];
};

// Adds the statistics of the previous steps to those in `rows`.
__device__ __forceinline__ Factors merge_statistics(RowStatistics& rows,
                                                    const RowStatistics& previous,
                                                    float scale_log2) {
  Factors factors;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float m = fmaxf(rows.m[h], previous.m[h]);
    factors.now[h] = rescaling(rows.m[h], m, scale_log2);
    factors.previous[h] = rescaling(previous.m[h], m, scale_log2);
    rows.m[h] = m;
    rows.l[h] = fmaf(rows.l[h], factors.now[h], previous.l[h] * factors.previous[h]);
  }
  return factors;
}

// Rescales this step's statistics to the m in `previous`, and adds the l in `previous`. factor: the
// factor by which o must be multiplied. Returns false and changes nothing if that would multiply
// the weights of some row of the warp by more than 2^16.
__device__ __forceinline__ bool merge_under_previous_max(RowStatistics& rows,
                                                         const RowStatistics& previous,
                                                         float scale_log2, float (&factor)[2]) {
  constexpr float most_growth = 16.0f;  // log2 of the factor
  float growth[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    growth[h] = previous.m[h] == -CUDART_INF_F ? 0.0f : (rows.m[h] - previous.m[h]) * scale_log2;
  if (__any_sync(0xffffffffu, growth[0] > most_growth || growth[1] > most_growth)) return false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    factor[h] = exp2_approx(growth[h]);
    if (previous.m[h] != -CUDART_INF_F) rows.m[h] = previous.m[h];
    rows.l[h] = fmaf(rows.l[h], factor[h], previous.l[h]);
  }
  return true;
}

// Multiplies o by factor. A warp skips the rows h if all of their factors are 1, as they are wherever a
// key tile raises the maximum of none of these eight rows.
template <int N>
__device__ __forceinline__ void rescale(float (&o)[N], const float (&factor)[2]) {
  // A NaN factor differs from 1, so it is applied.
  const bool changes[2] = {__any_sync(0xffffffffu, factor[0] != 1.0f) != 0,
                           __any_sync(0xffffffffu, factor[1] != 1.0f) != 0};
  // One branch instead of two where neither changes. Without it D256 takes up to 3 % longer under a mask.
  if (!changes[0] && !changes[1]) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!changes[h]) continue;
#pragma unroll
    for (int i = 2 * h; i < N; i += 4) {
      o[i] *= factor[h];
      o[i + 1] *= factor[h];
    }
  }
}

// Rounds the weights to the operand type, and packs them as the A fragments of PV.
template <typename Element, int S>
__device__ __forceinline__ void pack_weights(const float (&s)[S], uint32_t (&p)[S / 8][4]) {
#pragma unroll
  for (int k = 0; k < S / 8; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[k][i] = Dtype<Element>::pack(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

}  // namespace baracuda::sm90
