// Accesses to global memory that the compiler would not generate.
#pragma once

#include <stdint.h>

namespace baracuda {

// Loads that the compiler does not move. It would delay an ordinary load until the first use of its
// value, where the warp would wait for memory.
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

// Stores 16 bytes at once. The compiler may split an ordinary store of four registers.
__device__ __forceinline__ void store_four(void* address, const uint32_t (&x)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(x[0]), "r"(x[1]),
               "r"(x[2]), "r"(x[3])
               : "memory");
}

// Adds to global memory without loading it: L2 computes the sum. The result is deterministic if no
// other thread adds to the same numbers at the same time. policy: an L2 policy from tma.cuh.
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
#else  // without vectors, which need sm_90
  asm volatile(
      "red.relaxed.gpu.global.add.f32 [%0], %1;\n"
      "red.relaxed.gpu.global.add.f32 [%0 + 4], %2;\n"
      "red.relaxed.gpu.global.add.f32 [%0 + 8], %3;\n"
      "red.relaxed.gpu.global.add.f32 [%0 + 12], %4;" ::"l"(address),
      "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
      : "memory");
#endif
}

// Store with release and load with acquire. A thread that loads the stored word sees all writes
// that come before the store.
__device__ __forceinline__ void store_release(uint32_t* address, uint32_t x) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(x) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}
// Relaxed accesses, which order no other data. Put fence_threads() between the access of the word
// and that of the data.
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
// Orders the async proxy's (TMA's) accesses to global memory against those of ordinary
// instructions. Accesses of one kind before the fence come before accesses of the other kind after
// it.
__device__ __forceinline__ void fence_copies() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace baracuda
