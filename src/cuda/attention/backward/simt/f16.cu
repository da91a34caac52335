#include "attention/backward/simt/launch.cuh"

namespace baracuda::simt {

BackwardVariant backward_f16(int64_t head_dim) { return backward_of<__half, 4>(head_dim); }

}  // namespace baracuda::simt
