// Exponentials in base 2 for an online softmax. Row maxima are kept unscaled. The maximum of a row
// that has seen no key is -inf.
#pragma once

#include <math_constants.h>

namespace baracuda {

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The factor that rescales weights from the maximum `before` to the maximum `now`.
__device__ __forceinline__ float rescaling(float before, float now, float scale_log2) {
  return exp2_approx((before - (now == -CUDART_INF_F ? 0.0f : now)) * scale_log2);
}

}  // namespace baracuda
