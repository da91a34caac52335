// Functions that host and device code share.
#pragma once

#if defined(__CUDACC__)
#define BARACUDA_HD __host__ __device__ __forceinline__
#else
#define BARACUDA_HD inline
#endif
