// Prefetches into L2.
#pragma once

namespace baracuda {

// Prefetches the 32-byte sector of an address of global memory.
__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace baracuda
