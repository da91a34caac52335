#include "attention/forward/simt/launch.cuh"

namespace baracuda::simt {

Variant variant_bf16(int64_t head_dim) { return variant_f32_math<__nv_bfloat16>(head_dim); }

}  // namespace baracuda::simt
