// Attention over a ring: what the loop of ring.h is given for it.
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

// The problem of one rank's call. K and V are one payload that travels BESIDE the steps, in two
// pieces.
typedef struct baracuda_attention_ring_problem {
  uint64_t struct_size;
  int32_t kernel;  // enum baracuda_attention_kernel
  int32_t layout;  // enum baracuda_sequence_layout
  // q, y, lse, state, shapes and strides are set. The strides of K and V are those of every chunk.
  // The pointers of K and V, FIRST, LAST, the maps and the margin are the ring's business.
  baracuda_attention_step_params step;
} baracuda_attention_ring_problem;

BARACUDA_API const baracuda_ring_program* baracuda_attention_ring_program(void);

// The same of the gradients. K and V travel as above; the second payload is dk and dv, BEHIND the
// steps, in two pieces of the accumulator's type. A ring of one rank has the first alone.
typedef struct baracuda_attention_backward_ring_problem {
  uint64_t struct_size;
  int32_t kernel;
  int32_t layout;
  // dk and dv, their strides and their element are those of the sums that came home. For the rest
  // the same as above; the scratch is that of a call of several steps.
  baracuda_attention_backward_params call;
} baracuda_attention_backward_ring_problem;

BARACUDA_API const baracuda_ring_program* baracuda_attention_backward_ring_program(void);

#ifdef __cplusplus
}
#endif
