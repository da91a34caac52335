// Attention over a ring: the programs that the loop of ring.h runs, and their problems.
#pragma once

#include <stdint.h>

#include "baracuda/attention.h"
#include "baracuda/attention_backward.h"
#include "baracuda/export.h"
#include "baracuda/positions.h"
#include "baracuda/ring.h"

#ifdef __cplusplus
extern "C" {
#endif

// The problem of one rank's forward call. K and V are one payload of two pieces, BESIDE the steps.
typedef struct baracuda_attention_ring_problem {
  uint64_t struct_size;
  int32_t kernel;  // enum baracuda_attention_kernel
  int32_t layout;  // enum baracuda_sequence_layout
  // The caller sets q, y, lse, state, shapes and strides; every chunk has the strides of k and v.
  // The ring sets k and v, FIRST, LAST, FOLLOWS, the maps and the margin.
  baracuda_attention_step_params step;
} baracuda_attention_ring_problem;

BARACUDA_API const baracuda_ring_program* baracuda_attention_ring_program(void);

// The problem of one rank's backward call. K and V are a payload as above. dk and dv are a second
// payload of two pieces, BEHIND the steps, in the accumulator's type; a ring of one rank has none.
typedef struct baracuda_attention_backward_ring_problem {
  uint64_t struct_size;
  int32_t kernel;
  int32_t layout;
  // dk and dv, with their strides and element, get the sums that come home. All else as above; the
  // scratch is that of a call of several steps.
  baracuda_attention_backward_params call;
  // Not 0: the share that is kept apart (buffers[2] of the sums, ring.h) lies in dq's memory. Only for
  // kernels that finish (attention_backward.h).
  int32_t dq_holds_share;
} baracuda_attention_backward_ring_problem;

BARACUDA_API const baracuda_ring_program* baracuda_attention_backward_ring_program(void);

#ifdef __cplusplus
}
#endif
