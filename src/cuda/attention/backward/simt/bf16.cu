#include "attention/backward/simt/launch.cuh"

namespace baracuda::simt {

BackwardVariant backward_bf16(int64_t head_dim) { return backward_of<__nv_bfloat16, 4>(head_dim); }

}  // namespace baracuda::simt
