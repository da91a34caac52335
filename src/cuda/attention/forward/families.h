// The facts of each kernel family, also in builds without CUDA. Launches, the choice of a kernel
// and its explanation use them.
#pragma once

#include <stdint.h>

#include <string>

#include "attention/forward/family.h"
#include "attention/problem.h"

namespace baracuda {

struct FamilyFacts {
  const char* name;
  // Inclusive. 0 and 0 for the host.
  int32_t min_compute_capability;
  int32_t max_compute_capability;
  uint32_t elements;  // bit 1 << baracuda_element
  // True: products of 16-bit operands have the operands' precision; else the accumulator's.
  bool tensor_cores;
  // Head dims up to max_head_dim; if the list is not empty, only those in it.
  int32_t max_head_dim;
  int32_t head_dims[5];
  // True: scale must be > 0. The maximum is that of unscaled scores, and a masked score of -inf
  // must stay -inf when scaled.
  bool positive_scale;
  int64_t max_query_len;  // of a step
  int64_t max_key_len;
  int64_t max_tiles;  // of 64 query rows, all heads together
  bool windows;       // masks with window_left or window_right
  // Addresses and strides must be multiples of this many bytes; 0: of the element size.
  int32_t vector_bytes;
  // Strides of inputs must be 0 or more and below this; 0: any stride.
  int64_t max_stride_bytes;
};

// Null for an unknown family.
const FamilyFacts* find_facts(int32_t kernel);
// Null also for a family that this build lacks.
const AttentionFamily* find_family(int32_t kernel);

// Why the family does not serve the problem, as "name: got X, must be Y"; empty if it does. Says
// nothing of operands. Extents must be 0 or more.
std::string refusal(const FamilyFacts& family, const StepParams& p);
// The refusal of more tiles than the family counts; empty if it counts them all. names: of the
// arguments; kind: of the tiles, each of which has `tile` rows of `length`.
std::string refused_tiles(const FamilyFacts& family, const char* names, const char* kind,
                          int64_t batch, int64_t heads, int64_t length, int64_t tile);
// The shortest text that reads back as x, with a point or an exponent.
std::string shortest(double x);

// BARACUDA_OK, or the refusal as a failure of `call`.
int32_t check_served(const char* call, const FamilyFacts& family, const StepParams& p);
// The same for the address and strides of one operand [B, heads, length, D].
int32_t check_operand(const char* call, const FamilyFacts& family, const char* name,
                      const void* pointer, const baracuda_strides& strides, const StepParams& p,
                      int64_t heads, int64_t length, int32_t element, bool input);
// The same for all operands that a forward step reads or writes.
int32_t check_operands(const char* call, const FamilyFacts& family, const StepParams& p);

}  // namespace baracuda
