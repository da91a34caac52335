// The attention step and its backward as custom calls of XLA's typed FFI: handlers that JAX
// registers as they are.
//
// The step:
//
//   operands   q, k, v; when causal: position maps; unless first: state
//   results    state, which must be the operand's memory unless first; when last: y, lse
//   attributes int64 first, last, causal, kernel (enum baracuda_attention_kernel), sequence_dim,
//              sm_margin, interruptible (0: on the host Ctrl-C does not end it); float64 scale
//
// A step of the backward, before the first one the preparation too:
//
//   operands   q, k, v, dy; when causal: position maps; when first: y, lse and, with dlse, dlse; else:
//              scratch
//   results    scratch, which must be the operand's memory unless first; dk, dv; when last: dq
//   attributes int64 first, last, causal, dlse, kernel, sequence_dim, sm_margin; float64 scale
//
// q, k, v, y and their gradients are dense, [B, H, S, D] (sequence_dim 2) or [B, S, H, D]
// (sequence_dim 1), of one type; dk and dv may be of the accumulator's. lse and dlse are [B, H, Q]
// of the accumulator's type; the maps are two baracuda_position_map, of the queries and of the
// keys, as 16 32-bit words (JAX has 64-bit integers only when asked), in the memory that the kernel
// reads. A failure becomes an XLA error with the library's message.
#pragma once

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each takes an XLA_FFI_CallFrame* and returns an XLA_FFI_Error*, NULL for success.
BARACUDA_API void* baracuda_xla_attention_host(void* frame);       // execute, on the CPU
BARACUDA_API void* baracuda_xla_attention_cuda(void* frame);       // execute, on a CUDA stream
BARACUDA_API void* baracuda_xla_attention_cuda_load(void* frame);  // initialize: loads the kernel

// The backward's, likewise.
BARACUDA_API void* baracuda_xla_attention_backward_host(void* frame);
BARACUDA_API void* baracuda_xla_attention_backward_cuda(void* frame);
BARACUDA_API void* baracuda_xla_attention_backward_cuda_load(void* frame);

#ifdef __cplusplus
}
#endif
