// The backward of a kernel family, as dispatch calls it. Dispatch has checked the call before.
#pragma once

#include <stdint.h>

#include "attention/problem.h"
#include "baracuda/attention_backward.h"

namespace baracuda {

using BackwardParams = baracuda_attention_backward_params;

struct BackwardFamily {
  int32_t (*load)(const StepParams& problem);
  // Of a problem whose state_bytes() are counted: none of its products overflows.
  int64_t (*scratch_bytes)(const StepParams& problem);
  // Of a problem with rows.
  int32_t (*prepare)(const BackwardParams& params, void* stream);
  // Of a problem with rows or keys.
  int32_t (*step)(const BackwardParams& params, void* stream);
};

const BackwardFamily& host_backward_family();
#if defined(BARACUDA_WITH_CUDA)
const BackwardFamily& simt_backward_family();
const BackwardFamily& sm80_backward_family();
const BackwardFamily& sm90a_backward_family();
#endif

// First in the scratch of host and simt, in the accumulator's type: delta of all B*H*Q rows, then lse
// of them, with +inf in the place of -inf: such a row's weights are exp(s - inf) = 0.
inline int64_t row_statistics_bytes(const StepParams& p) {
  return 2 * p.batch * p.heads * p.query_len * accumulator_bytes(p.element);
}

inline bool is_single_step(const StepParams& p) {
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  return (p.flags & whole) == whole;
}

}  // namespace baracuda
