// The log-sum-exp of a row, as every CUDA family writes it.
#pragma once

#include <math_constants.h>

#include "attention/forward/step_args.cuh"
#include "common/dtype.cuh"

namespace baracuda {

// row: counted among all heads'.
template <typename Element, typename Compute>
__device__ __forceinline__ void store_lse(const StepArgs& args, int64_t row, Compute lse) {
  if (args.lse_is_f32) {
    static_cast<float*>(args.lse)[row] = static_cast<float>(lse);
  } else {
    static_cast<Element*>(args.lse)[row] = Dtype<Element>::store(lse);
  }
}

// From the maximum m of a row's unscaled scores, and the sum l of exp(scale * (score - m)).
// empty: what a row without weights has for a sum, 0 or NaN.
__device__ __forceinline__ float log_sum_exp(const StepArgs& args, float m, float l, float empty) {
  return l == 0.0f ? empty - CUDART_INF_F : static_cast<float>(m * args.scale + logf(l));
}

}  // namespace baracuda
