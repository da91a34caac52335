// Values that all lanes of a warp share.
#pragma once

namespace baracuda {

// The same in all lanes, which the compiler cannot see: it keeps what follows in uniform registers.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

}  // namespace baracuda
