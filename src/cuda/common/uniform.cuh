// Values that all lanes of a warp share.
#pragma once

namespace baracuda {

// Marks a value that is equal in all lanes, so that the compiler uses uniform registers for it.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

}  // namespace baracuda
