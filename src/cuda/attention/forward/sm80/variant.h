// The instantiations of the sm80 kernel. Each function below has a file of its own.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "attention/forward/family.h"

namespace baracuda::sm80 {

struct Variant {
  int32_t (*load)();
  int32_t (*launch)(const StepParams& params, cudaStream_t stream);
  int32_t (*grid)(const StepParams& params, StepGrid* grid);
};

// is_bf16 picks between the two element types.
Variant variant_d64(bool is_bf16);
Variant variant_d96(bool is_bf16);
Variant variant_d128(bool is_bf16);
Variant variant_d192(bool is_bf16);
Variant variant_d256(bool is_bf16);
// Blocks of twice the rows, for devices where an SM holds one of them but not two blocks of
// variant_d256.
Variant variant_d256_wide(bool is_bf16);

}  // namespace baracuda::sm80
