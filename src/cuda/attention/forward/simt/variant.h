// The instantiations of the simt kernel, one file per element type.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "attention/forward/family.h"

namespace baracuda::simt {

struct Variant {
  int32_t (*load)();
  int32_t (*launch)(const StepParams& params, cudaStream_t stream);
  int32_t (*grid)(const StepParams& params, StepGrid* grid);
};

// The smallest one that holds head_dim (at most 256).
Variant variant_f16(int64_t head_dim);
Variant variant_bf16(int64_t head_dim);
Variant variant_f32(int64_t head_dim);
Variant variant_f64(int64_t head_dim);

}  // namespace baracuda::simt
