// The instantiations of the sm90a kernel, one file per head_dim.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "attention/forward/family.h"

namespace baracuda::sm90 {

struct Variant {
  int32_t (*load)();  // loads every kernel that a step may need
  int32_t (*launch)(const StepParams& params, cudaStream_t stream);
  int32_t (*grid)(const StepParams& params, StepGrid* grid);
};

// The variant for the element type of params.
Variant variant_d64(const StepParams& params);
Variant variant_d128(const StepParams& params);
Variant variant_d256(const StepParams& params);

}  // namespace baracuda::sm90
