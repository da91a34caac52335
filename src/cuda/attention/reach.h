// How far the strides of an operand reach.
#pragma once

#include <stdint.h>

#include "attention/problem.h"

namespace baracuda {

// Checks that the byte offset of every element of an operand [B, heads, length, row_elements] fits
// in 63 bits, from its first element on. BARACUDA_OK, or a failure recorded for `call`.
int32_t check_reach(const char* call, const char* name, const baracuda_strides& strides,
                    const StepParams& p, int64_t heads, int64_t length, int64_t row_elements,
                    int64_t element_bytes);

}  // namespace baracuda
