// One attention step: fold a chunk of K and V into the online-softmax state of some query rows.
//
//   q        [B, H,   Q, D]      k, v  [B, Hkv, K, D]      H % Hkv == 0
//   y        [B, H,   Q, D]      lse   [B, H, Q] (dense)
//   state    unnormalised o_acc, row max m, row sum l of every query row; private to a kernel
//
// FIRST: there is no state to load. LAST: y = o_acc / l and lse = m + ln(l) are written and no
// state is stored. FIRST|LAST is plain attention in one launch with no state traffic.
// A row that saw no key gets y = 0 and lse = -inf.
#pragma once

#include <stdint.h>

#include "baracuda/element.h"
#include "baracuda/export.h"
#include "baracuda/positions.h"

#ifdef __cplusplus
extern "C" {
#endif

// Kernel families. A build may lack some of them: see baracuda_attention_available().
enum baracuda_attention_kernel {
  // In rising order of preference.
  BARACUDA_ATTENTION_HOST = 0,   // C++ threads; stream is ignored and the call is synchronous
  BARACUDA_ATTENTION_SIMT = 1,   // CUDA cores, strict f32/f64 math
  BARACUDA_ATTENTION_SM80 = 2,   // mma.sync, f16/bf16
  BARACUDA_ATTENTION_SM90A = 3,  // wgmma, f16/bf16
};

enum baracuda_step_flags {
  BARACUDA_STEP_FIRST = 1,
  BARACUDA_STEP_LAST = 2,
  BARACUDA_STEP_CAUSAL = 4,  // key j is visible to row i iff k_map(j) <= q_map(i)
  // The kernel enqueued last on the stream is a step too, and all that this one reads but the state
  // was complete before that one began: the two may run side by side until the state is wanted.
  BARACUDA_STEP_FOLLOWS = 8,
};

typedef struct baracuda_attention_step_params {
  uint64_t struct_size;  // sizeof(baracuda_attention_step_params)
  uint32_t flags;        // enum baracuda_step_flags
  int32_t element;       // enum baracuda_element of q, k, v, y
  int32_t lse_element;   // BARACUDA_F32, or element
  int32_t sm_margin;     // SMs that kernels whose blocks stay resident leave free

  int64_t batch;
  int64_t heads;
  int64_t kv_heads;
  int64_t query_len;
  int64_t key_len;
  int64_t head_dim;
  double scale;

  const void* q;
  const void* k;
  const void* v;
  void* y;      // read only when LAST
  void* lse;    // may be NULL
  void* state;  // may be NULL when FIRST|LAST; at least baracuda_attention_state_bytes()
  baracuda_strides q_strides;
  baracuda_strides k_strides;
  baracuda_strides v_strides;
  baracuda_strides y_strides;

  baracuda_position_map q_map;
  baracuda_position_map k_map;
  const baracuda_position_map* device_maps;  // {q, k} in device memory; overrides the two above

  // Reserved for later kernels: must be zero, but for the windows where a family serves them (none
  // does yet).
  int64_t query_offset;
  int64_t global_query_len;
  int64_t global_key_len;
  int64_t value_head_dim;
  int64_t window_left;   // of the keys up to its own position a row sees the last so many; 0: all
  int64_t window_right;  // of those after it the first so many; 0: all, or where CAUSAL none
  double softcap;
  const void* query_segments;
  const void* key_segments;
  void* partial_out;
} baracuda_attention_step_params;

// 1 if this build contains the family, else 0.
BARACUDA_API int32_t baracuda_attention_available(int32_t kernel);

// What a family is and needs, whether it is in this build or not.
typedef struct baracuda_attention_family {
  const char* name;
  int32_t min_compute_capability;  // 10 * major + minor, both inclusive; 0 and 0: the host
  int32_t max_compute_capability;
  uint32_t elements;        // it takes: bits 1 << enum baracuda_element
  int32_t tensor_cores;     // 1: multiplies at the operands' precision; 0: in f32, f64 in f64
  int32_t vector_bytes;     // addresses and strides are multiples of it; 0: of the element
  int32_t forward_strides;  // 1: inputs must not run backwards in memory
} baracuda_attention_family;

BARACUDA_API int32_t baracuda_attention_family_info(int32_t kernel,
                                                    baracuda_attention_family* info);

// BARACUDA_OK if the family, in a build that has it, serves the problem: element, extents, scale and
// mask; pointers, strides and positions are not looked at. Otherwise BARACUDA_UNSUPPORTED, with why
// in reason, cut to size bytes: the rest of a sentence that begins with the family's name. Records
// no failure, except that there is no such family. Extents must not be negative.
BARACUDA_API int32_t baracuda_attention_refusal(int32_t kernel,
                                                const baracuda_attention_step_params* params,
                                                char* reason, int64_t size);

// Bytes of state that the family needs for this problem; 0 for FIRST|LAST.
BARACUDA_API int64_t baracuda_attention_state_bytes(int32_t kernel,
                                                    const baracuda_attention_step_params* params);

// Loads every kernel that steps of this problem (any flags) may launch on the current device,
// so that a later step neither allocates nor loads. Host: starts the thread pool.
BARACUDA_API int32_t baracuda_attention_load(int32_t kernel,
                                             const baracuda_attention_step_params* params);

// Checks params and enqueues one step on stream (a cudaStream_t; ignored by the host family).
// Never allocates, never synchronises. B, H, Q of zero launch nothing; key_len of zero is legal.
BARACUDA_API int32_t baracuda_attention_step(int32_t kernel,
                                             const baracuda_attention_step_params* params,
                                             void* stream);

// What the rows of a chunk pair see under the mask, for planners: only flags, lengths, windows and
// the two maps of params are looked at. The product of the lengths must stay below 2^63.
typedef struct baracuda_visible_pairs {
  // Pairs of a row and a key that it sees, by the blocks of one run of rows and one run of keys (a
  // map has two runs, below and from its split): in blocks that the mask leaves whole, and others.
  int64_t whole;
  int64_t cut;
  // The rows from the first to the last that see a key; 0 and 0 where none does.
  int64_t first_row;
  int64_t end_row;
} baracuda_visible_pairs;

BARACUDA_API int32_t baracuda_attention_visible_pairs(const baracuda_attention_step_params* params,
                                                      baracuda_visible_pairs* pairs);

#ifdef __cplusplus
}
#endif
