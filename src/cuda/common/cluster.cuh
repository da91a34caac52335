// Clusters (sm_90): access to the shared memory of the other blocks.
#pragma once

#include <stdint.h>

namespace baracuda {

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Synchronises all threads of all blocks of the cluster that are still running.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" :::
               "memory");
}

// The cluster address of the same shared-memory location in another block.
__device__ __forceinline__ uint32_t address_at(int rank, uint32_t address) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

__device__ __forceinline__ void mbarrier_arrive_at(uint32_t there) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

// Stores a word in another block's shared memory. A barrier of that block counts the four bytes as
// arrived.
__device__ __forceinline__ void store_at(uint32_t there, int x, uint32_t barrier_there) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::
                   "r"(there), "r"(x), "r"(barrier_there)
               : "memory");
}

// Copies `bytes` bytes of shared memory to another block. A barrier of that block counts them as
// arrived.
__device__ __forceinline__ void copy_to_block(uint32_t there, uint32_t from, uint32_t bytes,
                                              uint32_t barrier_there) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(there), "r"(from), "r"(bytes), "r"(barrier_there)
      : "memory");
}

}  // namespace baracuda
