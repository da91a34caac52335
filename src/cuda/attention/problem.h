// The attention problem of a step, and the checks of it that every kernel needs.
#pragma once

#include <stdint.h>

#include "baracuda/attention.h"
#include "baracuda/status.h"

namespace baracuda {

using StepParams = baracuda_attention_step_params;

// Bytes of the type that sums are kept in: f64 for f64, f32 for all others.
int64_t accumulator_bytes(int32_t element);

// Bytes of the state: o_acc, m and l of every query row. -1 where they do not fit in 63 bits.
int64_t state_bytes(const StepParams& p);

// True if there are no rows; nothing is launched then.
inline bool is_empty(const StepParams& p) {
  return p.batch == 0 || p.heads == 0 || p.query_len == 0;
}

// True if rows may see different keys. A row's keys are an interval (interval.h); without a mask it
// is the whole chunk.
inline bool borders_may_vary(const StepParams& p) {
  return (p.flags & BARACUDA_STEP_CAUSAL) != 0;
}

// Each returns BARACUDA_OK, or a failure recorded for `call`.

// Checks everything except the positions, and the addresses and strides of operands.
int32_t check_problem(const char* call, const StepParams* params);
// Checks that positions rise and are between -2^62 and 2^62, if the mask depends on them.
int32_t check_maps(const char* call, const StepParams& p, const baracuda_position_map& q_map,
                   const baracuda_position_map& k_map);

}  // namespace baracuda
