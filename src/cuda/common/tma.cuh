// Copies by TMA (sm_90): boxes of a tensor, and contiguous bytes.
#pragma once

#include <stdint.h>

namespace baracuda {

__device__ __forceinline__ void tma_prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// L2 eviction policies for the data of a copy.
__device__ __forceinline__ uint64_t l2_evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ uint64_t l2_evict_last() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Copies one box of a 4-dimensional tensor to shared memory. c0 is the innermost coordinate.
// Elements outside the tensor become zeros. The copy completes on the mbarrier, whose phase must
// expect the bytes of the whole box.
__device__ __forceinline__ void tma_load_4d(uint32_t dst, const void* map, uint32_t barrier, int c0,
                                            int c1, int c2, int c3, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
      : "memory");
}

// Copies one box from shared memory to a 4-dimensional tensor. Elements outside the tensor are left
// out. The thread commits its copies in groups (tma_commit).
__device__ __forceinline__ void tma_store_4d(const void* map, uint32_t src, int c0, int c1, int c2,
                                             int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          map),
      "r"(src), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// Multicasts the box to the two blocks of a cluster, at the same addresses. The copy completes on
// the barrier of each block.
__device__ __forceinline__ void tma_load_4d_to_pair(uint32_t dst, const void* map,
                                                    uint32_t barrier, int c0, int c1, int c2,
                                                    int c3, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %8, %7;" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy),
      "h"(static_cast<uint16_t>(3))
      : "memory");
}

// Copies contiguous bytes to shared memory. Their number and both addresses must be multiples of
// 16. The copy completes on the mbarrier.
__device__ __forceinline__ void tma_load_bytes(uint32_t dst, const void* src, uint32_t bytes,
                                               uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// Adds `bytes` bytes of f32 numbers in shared memory to global memory. The thread commits its
// copies in groups (tma_commit). tma_wait_read<N> waits until all groups but the newest N have been
// read from shared memory; tma_wait<N> waits until all but the newest N are complete.
__device__ __forceinline__ void tma_add_bytes(float* dst, uint32_t src, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(dst),
      "r"(src), "r"(bytes)
      : "memory");
}
// Stores the bytes instead of adding them.
__device__ __forceinline__ void tma_store_bytes(void* dst, uint32_t src, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void tma_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void tma_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
template <int Pending>
__device__ __forceinline__ void tma_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace baracuda
