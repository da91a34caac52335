// One backward step: the gradients that some query rows and a chunk of K and V give each other.
//
//   dy       [B, H,   Q, D]      dq        [B, H,   Q, D]
//   lse      [B, H,   Q]         dk, dv    [B, Hkv, K, D]
//
// With P = exp(scale q k' - lse), the row's delta = rowsum(dy * y) - dlse and dS = P * (dy v' - delta):
//
//   dv = P' dy       dk = scale dS' q       dq = scale dS k
//
// A call is one baracuda_attention_backward_prepare(), which leaves delta and lse of every row in the
// scratch, and one step for each chunk of K and V. dq is summed over the steps in the accumulator's
// type (f32; f64 for f64) in the scratch, and is rounded once. FIRST: nothing has been summed yet.
// LAST: the step finishes, it writes dq. FOLLOWS changes nothing here. dk and dv of a step are whole:
// those of its chunk and of all heads of a group, and each step writes them.
//
// A row that sees no key has dq = 0 and gives no key anything, whatever its dy is (sm80, sm90a:
// whatever finite dy). A key that no row sees has dk = dv = 0.
#pragma once

#include <stdint.h>

#include "baracuda/attention.h"
#include "baracuda/element.h"
#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct baracuda_attention_backward_params {
  uint64_t struct_size;  // sizeof(baracuda_attention_backward_params)

  // The problem, as the forward step has it, with its own struct_size. Here y and lse are inputs, and
  // lse_element is the accumulator's type: anything less would be an error of P. lse may lie anywhere:
  // lse_strides say how (their rows need not lie side by side). state is the scratch: it belongs to
  // one call, and is at least baracuda_attention_backward_scratch_bytes().
  baracuda_attention_step_params step;

  const void* dy;
  const void* dlse;  // gradient of lse, of its type; NULL: zeros
  void* dq;          // written when LAST
  void* dk;
  void* dv;
  baracuda_strides dy_strides;
  baracuda_strides dq_strides;
  baracuda_strides dk_strides;
  baracuda_strides dv_strides;
  baracuda_strides lse_strides;
  baracuda_strides dlse_strides;
  int32_t kv_gradient_element;  // of dk and dv: element, or the accumulator's type
  int32_t reserved;             // must be zero
} baracuda_attention_backward_params;

// A family whose backward adds in any order may have a second one, mostly slower, whose every sum has a fixed
// order. It has a number of its own, which every entry below takes like that of a family. Its blocks wait
// for each other in an order that comes from the positions: with device_maps that do not rise, which
// nobody can refuse, they may wait for ever.
enum baracuda_attention_backward_kernel {
  BARACUDA_BACKWARD_SM80_ORDERED = 256 + BARACUDA_ATTENTION_SM80,
  BARACUDA_BACKWARD_SM90A_ORDERED = 256 + BARACUDA_ATTENTION_SM90A,
};

// The number of the family's second backward; -1 where there is none.
BARACUDA_API int32_t baracuda_attention_backward_second(int32_t kernel);

// Elements that the family's backward takes: bits 1 << enum baracuda_element. 0 where there is no such
// family, or where it has no backward.
BARACUDA_API uint32_t baracuda_attention_backward_elements(int32_t kernel);

// 1: every sum has a fixed order, so the same call gives the same bits.
BARACUDA_API int32_t baracuda_attention_backward_ordered(int32_t kernel);

// As baracuda_attention_refusal(), of the backward.
BARACUDA_API int32_t baracuda_attention_backward_refusal(
    int32_t kernel, const baracuda_attention_step_params* problem, char* reason, int64_t size);

// Bytes of scratch that a call of this problem needs; FIRST|LAST in step.flags asks for a call of one
// step, which may need less. -1 is a recorded failure. Of the operands none is looked at.
BARACUDA_API int64_t baracuda_attention_backward_scratch_bytes(
    int32_t kernel, const baracuda_attention_step_params* problem);

// Loads every kernel that calls of this problem may launch, as baracuda_attention_load() does.
BARACUDA_API int32_t baracuda_attention_backward_load(
    int32_t kernel, const baracuda_attention_step_params* problem);

// Enqueues what comes before a call's first step: reads y, dy, lse and dlse, writes the scratch. The
// flags FIRST and LAST must both be set if the call has one step, and else not both.
BARACUDA_API int32_t baracuda_attention_backward_prepare(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream);

// Enqueues one step: reads q, k, v, dy and the scratch; writes dk and dv, and dq when LAST. Never
// allocates, never synchronises. Without rows it writes zeros to dk and dv, without keys and as FIRST
// and LAST zeros to dq.
BARACUDA_API int32_t baracuda_attention_backward_step(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream);

#ifdef __cplusplus
}
#endif
