// Host side of TMA: tensor maps of the operands.
#pragma once

#include <cuda.h>
#include <stdint.h>

#include "baracuda/attention.h"

namespace baracuda::sm90 {

// Encodes the tensor map of a [batch, heads, length, head_dim] tensor of 16-bit elements, for boxes
// of 64 columns by `rows` rows with 128-byte swizzling. name: the operand's name in an error.
int32_t encode_tensor_map(CUtensorMap* map, const char* name, bool is_bf16, const void* address,
                          const baracuda_strides& strides, int64_t batch, int64_t heads,
                          int64_t length, int64_t head_dim, int rows);

// Looks up the driver's encoder. Later calls find it at once.
int32_t load_tensor_map_encoder();

}  // namespace baracuda::sm90
