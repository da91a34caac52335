// Global memory, in ways that the compiler would not choose.
#pragma once

#include <stdint.h>

namespace baracuda {

// Loads that stay where they are written: the compiler would put them off until their values are
// wanted, and a warp would wait for memory then.
__device__ __forceinline__ float load_early(const float* address) {
  float x;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(address) : "memory");
  return x;
}

__device__ __forceinline__ float4 load_early(const float4* address) {
  float4 x;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(address)
               : "memory");
  return x;
}

// Adds to what lies in memory without loading it: L2 does the sum. With nobody else adding to the
// same numbers meanwhile the result does not depend on any order. policy: of tma.cuh.
__device__ __forceinline__ void add_in_memory(float4* address, float4 x, uint64_t policy) {
  asm volatile(
      "red.relaxed.gpu.global.add.L2::cache_hint.v4.f32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(address),
      "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void add_in_memory(float4* address, float4 x) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address),
               "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
#else  // one by one
  asm volatile(
      "red.relaxed.gpu.global.add.f32 [%0], %1;\n"
      "red.relaxed.gpu.global.add.f32 [%0 + 4], %2;\n"
      "red.relaxed.gpu.global.add.f32 [%0 + 8], %3;\n"
      "red.relaxed.gpu.global.add.f32 [%0 + 12], %4;" ::"l"(address),
      "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
      : "memory");
#endif
}

// A word that other blocks wait for. What was written before it is there for who has read it.
__device__ __forceinline__ void store_release(uint32_t* address, uint32_t x) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(x) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}
// The same of the word alone; with a fence between them and what else is written or read.
__device__ __forceinline__ void store_relaxed(uint32_t* address, uint32_t x) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(x) : "memory");
}
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* address) {
  uint32_t x;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}
__device__ __forceinline__ void fence_threads() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
// What the copy engine does to global memory, and what threads do: each side before the fence comes
// before the other side behind it.
__device__ __forceinline__ void fence_copies() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace baracuda
