// The log-sum-exp of a row (attention/row_result.h), as every CUDA family writes it.
#pragma once

#include "attention/forward/step_args.cuh"
#include "common/dtype.cuh"

namespace baracuda {

// row: counted over all heads.
template <typename Element, typename Compute>
__device__ __forceinline__ void store_lse(const StepArgs& args, int64_t row, Compute lse) {
  if (args.lse_is_f32) {
    static_cast<float*>(args.lse)[row] = static_cast<float>(lse);
  } else {
    static_cast<Element*>(args.lse)[row] = Dtype<Element>::store(lse);
  }
}

}  // namespace baracuda
