// cp.async (sm_80): asynchronous copies from global to shared memory.
#pragma once

#include <stdint.h>

#include "common/shared_access.cuh"

namespace baracuda {

// Copies Bytes bytes (4, 8 or 16). If valid is false, writes zeros instead, and does not read src.
template <int Bytes>
__device__ __forceinline__ void cp_async_or_zero(uint32_t dst, const void* src, bool valid) {
  const int size = valid ? Bytes : 0;
  if constexpr (Bytes == 16) {
    // Bypasses L1, since a block reads a tile once.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(size)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dst), "l"(src), "n"(Bytes),
                 "r"(size)
                 : "memory");
  }
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace baracuda
