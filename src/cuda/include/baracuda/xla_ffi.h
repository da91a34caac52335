// The attention step as custom calls of XLA's typed FFI: handlers that JAX registers as they are.
//
//   operands   q, k, v; when causal: position maps; unless first: state
//   results    state, which must be the operand's memory unless first; when last: y, lse
//   attributes int64 first, last, causal, kernel (enum baracuda_attention_kernel), sequence_dim,
//              sm_margin; float64 scale
//
// q, k, v, y are dense, [B, H, S, D] (sequence_dim 2) or [B, S, H, D] (sequence_dim 1); lse is f32
// [B, H, Q]; the maps are two baracuda_position_map, of the queries and of the keys, as 16 32-bit
// words (JAX has 64-bit integers only when asked), in the memory that the kernel reads.
// A failure becomes an XLA error with the library's message.
#pragma once

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each takes an XLA_FFI_CallFrame* and returns an XLA_FFI_Error*, NULL for success.
BARACUDA_API void* baracuda_xla_attention_host(void* frame);       // execute, on the CPU
BARACUDA_API void* baracuda_xla_attention_cuda(void* frame);       // execute, on a CUDA stream
BARACUDA_API void* baracuda_xla_attention_cuda_load(void* frame);  // initialize: loads the kernel

#ifdef __cplusplus
}
#endif
