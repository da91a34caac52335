// Host side of the copy engine: descriptions of the operands' tensors.
#pragma once

#include <cuda.h>
#include <stdint.h>

#include "baracuda/attention.h"

namespace baracuda::sm90 {

// Describes a [batch, heads, length, head_dim] tensor of 16-bit elements to the copy engine, for
// boxes of 64 columns by `rows` rows with 128-byte swizzling.
int32_t encode_tensor_map(CUtensorMap* map, const char* name, bool is_bf16, const void* address,
                          const baracuda_strides& strides, int64_t batch, int64_t heads,
                          int64_t length, int64_t head_dim, int rows);

// Finds the driver's encoder, so that later steps need not search for it.
int32_t load_tensor_map_encoder();

}  // namespace baracuda::sm90
