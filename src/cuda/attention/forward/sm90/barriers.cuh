// The barriers of the sm90a kernel, and the description of a work tile in shared memory.
#pragma once

#include "attention/forward/sm90/config.h"
#include "common/mbarrier.cuh"
#include "common/shared_access.cuh"
#include "common/uniform.cuh"

namespace baracuda::sm90 {

// Addresses of the barriers. "full": the data has arrived. "empty": the readers are done. All
// consumers read K and V, and one lane of each warp arrives at k_empty and v_empty for its warp. In a
// cluster K and V are copied to both blocks, so another lane arrives at those of the other block.
// Each consumer reads its own Q and its own slots (a slot describes a query tile, see WorkTile
// below). Slots are written and read by ordinary instructions, so every thread arrives: 32 threads
// at slot_full, 128 at q_empty. There is no slot_empty. q_empty serves for slots, too: a thread
// that arrives there for query tile n has finished with the slots of tiles 0 to n - 1.
template <typename C>
struct Barriers {
  uint32_t base;
  __device__ __forceinline__ uint32_t k_full(int stage) const { return base + 8 * stage; }
  __device__ __forceinline__ uint32_t k_empty(int stage) const {
    return k_full(stage) + 8 * C::stages;
  }
  __device__ __forceinline__ uint32_t v_full(int stage) const {
    return k_full(stage) + 16 * C::stages;
  }
  __device__ __forceinline__ uint32_t v_empty(int stage) const {
    return k_full(stage) + 24 * C::stages;
  }
  __device__ __forceinline__ uint32_t q_full(int group, int stage) const {
    return base + 32 * C::stages + 8 * (group * C::q_stages + stage);
  }
  __device__ __forceinline__ uint32_t q_empty(int group, int stage) const {
    return q_full(group, stage) + 8 * C::consumers * C::q_stages;
  }
  __device__ __forceinline__ uint32_t slot_full(int group, int slot) const {
    return base + 32 * C::stages + 16 * C::consumers * C::q_stages +
           8 * (group * C::slots + slot);
  }
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(k_full(i), 1);
      mbarrier_init(v_full(i), 1);
      mbarrier_init(k_empty(i), 4 * C::consumers * C::cluster);
      mbarrier_init(v_empty(i), 4 * C::consumers * C::cluster);
    }
    for (int group = 0; group < C::consumers; ++group) {
      for (int i = 0; i < C::q_stages; ++i) {
        mbarrier_init(q_full(group, i), 1);
        mbarrier_init(q_empty(group, i), 128);
      }
      for (int i = 0; i < C::slots; ++i) mbarrier_init(slot_full(group, i), 32);
    }
    mbarrier_init_fence();
  }
};

// The slot in shared memory that describes the n-th query tile of a consumer warpgroup. A warp of
// warpgroup 0 writes it while the consumers are busy, and the consumers need no registers for it.
template <typename C>
class WorkTile {
 public:
  __device__ __forceinline__ WorkTile(uint32_t shared, int group, uint32_t n)
      : address_(shared + C::slots_offset + (group * C::slots + n % C::slots) * C::slot_bytes) {}

  __device__ __forceinline__ int batch_head() const { return shared_load(address_); }
  __device__ __forceinline__ int batch() const { return shared_load(address_ + 4); }
  __device__ __forceinline__ int head() const { return shared_load(address_ + 8); }
  // The warpgroup's first row.
  __device__ __forceinline__ int row0() const { return shared_load(address_ + 12); }
  // The number of key tiles that the block's query tile sees; -1: there is no more work.
  __device__ __forceinline__ int tiles() const { return shared_load(address_ + 16); }
  // The number of key tiles that the warpgroup sees: tiles 0 to seen() - 1. Key tiles are processed
  // from the last to the first, so the warpgroup first skips the tiles from seen() on.
  __device__ __forceinline__ int seen() const { return shared_load(address_ + 20); }
  // The number of keys that the i-th row of the warpgroup sees. The first row sees the fewest.
  __device__ __forceinline__ int limit(int i) const { return shared_load(address_ + 32 + 4 * i); }

  __device__ __forceinline__ void set_limit(int i, int keys) const {
    shared_store(address_ + 32 + 4 * i, keys);
  }
  __device__ __forceinline__ void set(int batch_head, int batch, int head, int row0, int tiles,
                                      int seen) const {
    shared_store(address_, batch_head);
    shared_store(address_ + 4, batch);
    shared_store(address_ + 8, head);
    shared_store(address_ + 12, row0);
    shared_store(address_ + 16, tiles);
    shared_store(address_ + 20, seen);
  }

 private:
  uint32_t address_;
};

}  // namespace baracuda::sm90
