// What each kernel family takes: the one place that decides it, for launches, for choosing a kernel
// and for explaining the choice, in builds without CUDA too.
#pragma once

#include <stdint.h>

#include <string>

#include "attention/forward/family.h"
#include "attention/problem.h"

namespace baracuda {

struct FamilyFacts {
  const char* name;
  // Inclusive; 0 and 0: the host.
  int32_t min_compute_capability;
  int32_t max_compute_capability;
  uint32_t elements;  // bit 1 << baracuda_element
  // Products of 16-bit operands at their own precision; otherwise in the accumulator's.
  bool tensor_cores;
  // Up to max_head_dim, or where the list is not empty those of it alone.
  int32_t max_head_dim;
  int32_t head_dims[5];
  // The maximum is taken of unscaled scores, and a masked one of -inf must stay -inf when scaled.
  bool positive_scale;
  int64_t max_query_len;  // of a step
  int64_t max_key_len;
  int64_t max_tiles;  // of 64 query rows, all heads together
  bool windows;       // masks with window_left or window_right
  // Addresses, and strides, are multiples of so many bytes; 0: of an element.
  int32_t vector_bytes;
  // Inputs are stepped through forwards, by less than this; 0: either way, by any.
  int64_t max_stride_bytes;
};

// Null where there is no such family.
const FamilyFacts* find_facts(int32_t kernel);
// Null where this build lacks it, too.
const AttentionFamily* find_family(int32_t kernel);

// Why the family does not serve the problem (operands aside): the rest of a sentence that begins
// with its name. Empty if it does. Asked for any extents of 0 or more.
std::string refusal(const FamilyFacts& family, const StepParams& p);

// BARACUDA_OK, or the refusal as a failure of `call`.
int32_t check_served(const char* call, const FamilyFacts& family, const StepParams& p);
// The same for one operand [B, heads, length, D] of an element: its address and strides.
int32_t check_operand(const char* call, const FamilyFacts& family, const char* name,
                      const void* pointer, const baracuda_strides& strides, const StepParams& p,
                      int64_t heads, int64_t length, int32_t element, bool input);
// And for the forward's operands, of those that the step touches.
int32_t check_operands(const char* call, const FamilyFacts& family, const StepParams& p);

}  // namespace baracuda
