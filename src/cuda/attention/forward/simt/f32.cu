#include "attention/forward/simt/launch.cuh"

namespace baracuda::simt {

Variant variant_f32(int64_t head_dim) { return variant_f32_math<float>(head_dim); }

}  // namespace baracuda::simt
