// One backward step: the gradients that some query rows and a chunk of K and V give each other.
//
//   dy       [B, H,   Q, D]      dq        [B, H,   Q, D]
//   lse      [B, H,   Q]         dk, dv    [B, Hkv, K, D]
//
// With P = exp(scale q k' - lse), the row's delta = rowsum(dy * y) - dlse and dS = P * (dy v' -
// delta):
//
//   dv = P' dy       dk = scale dS' q       dq = scale dS k
//
// A call is one baracuda_attention_backward_prepare(), which writes delta and lse of every row to
// the scratch, and one step for each chunk of K and V. The steps sum dq in the scratch, in the
// accumulator's type (f32; f64 for f64), and the last one rounds it. FIRST: nothing has been summed
// yet. LAST: the step writes dq. FOLLOWS has no effect here. Every step writes the complete dk and
// dv of its chunk, summed over all query heads of a group.
//
// A row that sees no key has dq = 0 and adds nothing to dk and dv, whatever its dy (sm80 and sm90a:
// for any finite dy). A key that no row sees has dk = dv = 0.
//
// The outputs (dq, dk, dv, the scratch) must not overlap each other or any input. That is not
// checked here.
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

  // The problem, as in the forward step, with its own struct_size. Here y and lse are inputs.
  // lse_element is the accumulator's type, since a rounded lse would be an error of P. lse_strides
  // are the strides of lse; its rows need not be contiguous. state is the scratch: it belongs to
  // one call, and holds at least baracuda_attention_backward_scratch_bytes().
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

// A family whose backward adds in no fixed order may have a second, deterministic backward, mostly
// slower, that makes every sum in a fixed order. It has a number of its own, which every entry
// below takes like a family's. Its blocks wait for each other in an order that follows from the
// positions. Positions in device_maps must rise: the host cannot check them, and with others the
// blocks may wait for ever.
enum baracuda_attention_backward_kernel {
  BARACUDA_BACKWARD_SM80_ORDERED = 256 + BARACUDA_ATTENTION_SM80,
  BARACUDA_BACKWARD_SM90A_ORDERED = 256 + BARACUDA_ATTENTION_SM90A,
};

// The number of the family's deterministic second backward; -1 if it has none.
BARACUDA_API int32_t baracuda_attention_backward_second(int32_t kernel);

// Elements that the family's backward takes, as bits 1 << enum baracuda_element. 0 for an unknown
// family, and for one without a backward.
BARACUDA_API uint32_t baracuda_attention_backward_elements(int32_t kernel);

// 1 if every sum has a fixed order, so that equal calls give equal bits.
BARACUDA_API int32_t baracuda_attention_backward_ordered(int32_t kernel);

// 1 if a launch of its own writes dq after the last of a call's several steps, so that the steps leave
// dq alone. 0 if the last step writes it. -1 if the kernel is unknown, or not in this build.
BARACUDA_API int32_t baracuda_attention_backward_finishes(int32_t kernel);

// As baracuda_attention_refusal(), for the backward.
BARACUDA_API int32_t baracuda_attention_backward_refusal(
    int32_t kernel, const baracuda_attention_step_params* problem, char* reason, int64_t size);

// Bytes of scratch that a call of this problem needs. With FIRST|LAST in step.flags: for a call of
// one step, which may need less. -1 is a recorded failure. The operands are ignored.
BARACUDA_API int64_t baracuda_attention_backward_scratch_bytes(
    int32_t kernel, const baracuda_attention_step_params* problem);

// Loads every kernel that calls of this problem may launch, as baracuda_attention_load() does.
BARACUDA_API int32_t baracuda_attention_backward_load(
    int32_t kernel, const baracuda_attention_step_params* problem);

// Enqueues the preparation that precedes a call's first step: reads y, dy, lse and dlse, and writes
// the scratch. Set both FIRST and LAST if the call has one step, and not both otherwise.
BARACUDA_API int32_t baracuda_attention_backward_prepare(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream);

// Enqueues one step: reads q, k, v, dy and the scratch; writes dk and dv, and dq when LAST. Never
// allocates, never synchronises. With no rows it writes zeros to dk and dv; with no keys and
// FIRST|LAST it writes zeros to dq.
BARACUDA_API int32_t baracuda_attention_backward_step(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream);

#ifdef __cplusplus
}
#endif
