// One attention step: fold a chunk of K and V into the online-softmax state of some query rows.
//
//   q        [B, H,   Q, D]      k, v  [B, Hkv, K, D]      H % Hkv == 0
//   y        [B, H,   Q, D]      lse   [B, H, Q] (dense)
//   state    unnormalised o_acc, row max m, row sum l of every query row; private to a kernel
//
// FIRST: there is no state to load. LAST: y = o_acc / l and lse = m + ln(l) are written and no
// state is stored. FIRST|LAST is plain attention in one launch with no state traffic.
// A row that saw no key gets y = 0 and lse = -inf.
//
// The outputs (y, lse, state) must not overlap each other or any input. That is not checked here.
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
  // Since the previous step, nothing but gate kernels (peer.h) was enqueued on the stream.
  // Everything that this step reads except the state is complete before this step can start: it was
  // complete before the previous step began, or a gate has waited for it. The two steps may overlap
  // until this one needs the state.
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
  void* y;      // written when LAST
  void* lse;    // may be NULL
  void* state;  // may be NULL when FIRST|LAST; at least baracuda_attention_state_bytes()
  baracuda_strides q_strides;
  baracuda_strides k_strides;
  baracuda_strides v_strides;
  baracuda_strides y_strides;

  baracuda_position_map q_map;
  baracuda_position_map k_map;
  const baracuda_position_map* device_maps;  // {q, k} in device memory; overrides the two above

  // Reserved for later kernels: must be zero. A window may be set if the family serves it; none
  // does yet.
  int64_t query_offset;
  int64_t global_query_len;
  int64_t global_key_len;
  int64_t value_head_dim;
  int64_t window_left;   // keys that a row sees up to and with its own position; 0: all
  int64_t window_right;  // keys that a row sees after its own position; 0: all, with CAUSAL none
  double softcap;
  const void* query_segments;
  const void* key_segments;
  void* partial_out;
} baracuda_attention_step_params;

// 1 if this build contains the family, else 0.
BARACUDA_API int32_t baracuda_attention_available(int32_t kernel);

// What a family is and needs. The build need not contain it.
typedef struct baracuda_attention_family {
  const char* name;
  int32_t min_compute_capability;  // 10 * major + minor, both inclusive; 0 and 0: the host
  int32_t max_compute_capability;
  uint32_t elements;        // elements it takes, as bits 1 << enum baracuda_element
  int32_t tensor_cores;     // 1: multiplies at the operands' precision; 0: in f32, or f64 for f64
  int32_t vector_bytes;     // addresses and strides must be multiples of it; 0: of the element size
  // Strides of inputs must be from 0 to below this number of bytes; 0: any strides.
  int64_t max_stride_bytes;
} baracuda_attention_family;

BARACUDA_API int32_t baracuda_attention_family_info(int32_t kernel,
                                                    baracuda_attention_family* info);

// BARACUDA_OK if the family serves the problem's element, extents, scale and mask; the build need
// not contain the family. Pointers, strides and positions are ignored. Otherwise
// BARACUDA_UNSUPPORTED, and `reason` gets the rest of a sentence that begins with the family's
// name, cut to `size` bytes. A problem that no family could serve is a recorded failure, and
// `reason` gets the record's message. Recorded too, without a reason: an unknown family, another
// struct_size, a negative `size`, and a `reason` of NULL unless `size` is 0.
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

// For planners: what the rows of a shard see of a chunk of keys under the mask. The answer depends
// only on the flags, lengths, windows and the two maps of params. The rest must be a problem that
// some family could serve, for example one with batch, heads, kv_heads and head_dim of 1, F32 in
// both elements and zeros elsewhere. Pointers, strides and device_maps are ignored. The product of
// the lengths must stay below 2^63.
typedef struct baracuda_visible_pairs {
  // Pairs of a row and a key that the row sees. A position map has two runs of evenly spaced
  // positions, so rows and keys form up to four blocks. whole: pairs in blocks that are fully
  // visible. cut: pairs in blocks that the mask cuts.
  int64_t whole;
  int64_t cut;
  // The rows from the first to the last that see a key; 0 and 0 if none does.
  int64_t first_row;
  int64_t end_row;
} baracuda_visible_pairs;

BARACUDA_API int32_t baracuda_attention_visible_pairs(const baracuda_attention_step_params* params,
                                                      baracuda_visible_pairs* pairs);

#ifdef __cplusplus
}
#endif
