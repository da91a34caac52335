// Words of shared memory by their 32-bit addresses: half the registers of a pointer, and read again
// each time rather than kept in a register.
#pragma once

#include <stdint.h>

namespace baracuda {

__device__ __forceinline__ int shared_load(uint32_t address) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

__device__ __forceinline__ void shared_store(uint32_t address, int x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

}  // namespace baracuda
