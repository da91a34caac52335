// Blocks of a cluster (sm_90): each other's shared memory.
#pragma once

#include <stdint.h>

namespace baracuda {

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// All threads of all blocks; those that have ended do not count.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" :::
               "memory");
}

// Where a block of the cluster has what lies at this address of shared memory here.
__device__ __forceinline__ uint32_t address_at(int rank, uint32_t address) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

__device__ __forceinline__ void mbarrier_arrive_at(uint32_t there) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

// Stores a word in another block's shared memory, and completes its four bytes on a barrier there.
__device__ __forceinline__ void store_at(uint32_t there, int x, uint32_t barrier_there) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::
                   "r"(there), "r"(x), "r"(barrier_there)
               : "memory");
}

// Copies shared memory to another block's, and completes so many bytes on its barrier.
__device__ __forceinline__ void copy_to_block(uint32_t there, uint32_t from, uint32_t bytes,
                                              uint32_t barrier_there) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(there), "r"(from), "r"(bytes), "r"(barrier_there)
      : "memory");
}

}  // namespace baracuda
