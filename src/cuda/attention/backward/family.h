// The backward of a kernel family, as dispatch calls it. Dispatch has checked the call before.
#pragma once

#include <stdint.h>

#include "attention/forward/family.h"
#include "attention/problem.h"
#include "baracuda/attention_backward.h"

namespace baracuda {

using BackwardParams = baracuda_attention_backward_params;

// The sum of two parts of dk or dv. Both are dense [B, Hkv, K, D], in the accumulator's type.
struct GradientSum {
  const void* received;
  const void* share;
  void* out;                 // one of the two parts, or other memory
  baracuda_strides strides;  // of out
  int32_t element;           // of out: the problem's element, or the accumulator's
};

struct BackwardFamily {
  int32_t (*load)(const StepParams& problem);
  // Called only if state_bytes() can be computed, so that no product of extents overflows.
  int64_t (*scratch_bytes)(const StepParams& problem);
  // Called only for a problem with rows.
  int32_t (*prepare)(const BackwardParams& params, void* stream);
  // Called only for a problem with rows or keys. If there is a finish, it follows the last step.
  int32_t (*step)(const BackwardParams& params, void* stream);
  // The resident blocks of a step. NULL if the blocks of a step do not stay resident.
  int32_t (*grid)(const BackwardParams& params, StepGrid* grid) = nullptr;
  // Writes dq. NULL if the last step writes it.
  int32_t (*finish)(const BackwardParams& params, void* stream) = nullptr;
};

// The grid of a valid step; {0, 0} if its blocks do not stay resident.
int32_t backward_step_grid(int32_t kernel, const BackwardParams& params, StepGrid* grid);

// The two parts of a step. First: dk, dv and the additions to dq. Second, in the last step: dq. A
// family without a finish writes dq in the first part.
int32_t step_without_finish(int32_t kernel, const BackwardParams& params, void* stream);
int32_t finish_step(int32_t kernel, const BackwardParams& params, void* stream);

// Enqueues the sums of dk and of dv, of a problem that the kernel serves.
int32_t add_gradients(int32_t kernel, const StepParams& problem, const GradientSum (&sums)[2],
                      void* stream);

const BackwardFamily& host_backward_family();
#if defined(BARACUDA_WITH_CUDA)
const BackwardFamily& simt_backward_family();
const BackwardFamily& sm80_backward_family();
const BackwardFamily& sm80_ordered_backward_family();
const BackwardFamily& sm90a_backward_family();
const BackwardFamily& sm90a_ordered_backward_family();
#endif

// Adds gradients, on the host or on a GPU, for every family. Called only for a problem with keys.
struct GradientAdder {
  int32_t (*load)();
  int32_t (*add)(const StepParams& problem, const GradientSum (&sums)[2], void* stream);
};
const GradientAdder& host_gradient_adder();
#if defined(BARACUDA_WITH_CUDA)
const GradientAdder& gpu_gradient_adder();
#endif

// The strides of dense dk and dv.
inline baracuda_strides dense_key_strides(const StepParams& p) {
  return {p.kv_heads * p.key_len * p.head_dim, p.key_len * p.head_dim, p.head_dim};
}

// Bytes of the row statistics that begin the scratch of host and simt, in the accumulator's type:
// delta of all B*H*Q rows, then their lse. An lse of -inf is stored as +inf, so that the row's
// weights are exp(s - inf) = 0.
inline int64_t row_statistics_bytes(const StepParams& p) {
  return 2 * p.batch * p.heads * p.query_len * accumulator_bytes(p.element);
}

inline bool is_single_step(const StepParams& p) {
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  return (p.flags & whole) == whole;
}

}  // namespace baracuda
