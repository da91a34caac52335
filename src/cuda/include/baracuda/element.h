// Element types of operands, and how a [B, H, S, D] operand lies in memory.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

enum baracuda_element {
  BARACUDA_F16 = 0,
  BARACUDA_BF16 = 1,
  BARACUDA_F32 = 2,
  BARACUDA_F64 = 3,
};

// Bytes of one element; 0 for an unknown element.
BARACUDA_API int64_t baracuda_element_bytes(int32_t element);

// Strides are in elements; the last dimension is contiguous.
typedef struct baracuda_strides {
  int64_t batch;
  int64_t head;
  int64_t seq;
} baracuda_strides;

#ifdef __cplusplus
}
#endif
