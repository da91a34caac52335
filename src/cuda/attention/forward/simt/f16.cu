#include "attention/forward/simt/launch.cuh"

namespace baracuda::simt {

Variant variant_f16(int64_t head_dim) { return variant_f32_math<__half>(head_dim); }

}  // namespace baracuda::simt
