#include "attention/backward/simt/launch.cuh"

namespace baracuda::simt {

BackwardVariant backward_f64(int64_t head_dim) { return backward_of<double, 2>(head_dim); }

}  // namespace baracuda::simt
