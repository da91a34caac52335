// Alignment checks that the CUDA families share.
#pragma once

#include <stdint.h>

#include "attention/forward/family.h"
#include "common/error.h"

namespace baracuda {

inline int32_t check_alignment(const char* kernel, const char* name, const void* pointer,
                               int bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0) {
    return BARACUDA_OK;
  }
  return fail(BARACUDA_MISALIGNED, "baracuda_attention_step",
              "%s is at address %p; the %s kernel needs it aligned to %d bytes", name, pointer,
              kernel, bytes);
}

inline int element_bytes(int32_t element) {
  return element == BARACUDA_F64 ? 8 : element == BARACUDA_F32 ? 4 : 2;
}

// All operands that this step touches: tensors to tensor_bytes, state to state_bytes, lse to its
// own element.
inline int32_t check_operand_alignment(const char* kernel, const StepParams& p, int tensor_bytes,
                                       int state_bytes) {
  const bool first = (p.flags & BARACUDA_STEP_FIRST) != 0;
  const bool last = (p.flags & BARACUDA_STEP_LAST) != 0;
  int32_t status = check_alignment(kernel, "q", p.q, tensor_bytes);
  if (status == BARACUDA_OK && p.key_len > 0) {
    status = check_alignment(kernel, "k", p.k, tensor_bytes);
    if (status == BARACUDA_OK) status = check_alignment(kernel, "v", p.v, tensor_bytes);
  }
  if (status == BARACUDA_OK && last) {
    status = check_alignment(kernel, "y", p.y, tensor_bytes);
    if (status == BARACUDA_OK)
      status = check_alignment(kernel, "lse", p.lse, element_bytes(p.lse_element));
  }
  if (status == BARACUDA_OK && !(first && last))
    status = check_alignment(kernel, "state", p.state, state_bytes);
  return status;
}

}  // namespace baracuda
