// The instantiations of the simt backward, one file per type of the arithmetic.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "attention/backward/family.h"

namespace baracuda::simt {

struct BackwardVariant {
  int32_t (*load)();
  int32_t (*prepare)(const BackwardParams& params, cudaStream_t stream);
  int32_t (*step)(const BackwardParams& params, cudaStream_t stream);
};

// The smallest one that holds head_dim (at most 256).
BackwardVariant backward_f32(int64_t head_dim);  // f16 and bf16, too
BackwardVariant backward_f64(int64_t head_dim);

}  // namespace baracuda::simt
