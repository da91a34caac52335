// The instantiations of the sm90a kernel, one file per head_dim.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "attention/family.h"

namespace baracuda::sm90 {

struct Variant {
  int32_t (*load)();
  int32_t (*launch)(const StepParams& params, cudaStream_t stream);
};

// is_bf16 picks between the two element types; a causal step may want another tile.
Variant variant_d64(bool is_bf16, bool causal);
Variant variant_d128(bool is_bf16, bool causal);
Variant variant_d256(bool is_bf16, bool causal);

}  // namespace baracuda::sm90
