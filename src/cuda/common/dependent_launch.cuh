// Programmatic dependent launch (sm_90). A kernel's blocks may start while the previous kernel of
// the stream still runs; they wait for its end before they touch its outputs. Code for older
// architectures lacks both instructions and must not be launched this way.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "common/error.h"

namespace baracuda {

// Allows blocks of a dependent grid to start, once every block of this grid has called it.
__device__ __forceinline__ void launch_dependent_grids() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the grids that this one depends on have ended and their writes are visible.
__device__ __forceinline__ void await_previous_grids() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a grid in clusters of `cluster` blocks. With `overlap` it may start before the previous
// kernel has ended, and must call await_previous_grids().
template <typename Args>
int32_t launch_grid(void (*kernel)(Args), dim3 blocks, unsigned threads, int shared_bytes,
                    cudaStream_t stream, bool overlap, const Args& args, unsigned cluster = 1) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (overlap) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return check_cuda(cudaLaunchKernelEx(&config, kernel, args), "cudaLaunchKernelEx");
}

}  // namespace baracuda
