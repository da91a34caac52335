// The barriers of the sm90a backward kernel at head_dim 256.
#pragma once

#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/wide_config.h"
#include "common/cluster.cuh"

namespace baracuda::sm90::backward {

template <typename E, bool M, bool O>
struct Barriers<WideConfig<E, M, O>> {
  using C = WideConfig<E, M, O>;
  uint32_t base;
  __device__ __forceinline__ uint32_t q_full(int stage) const { return at(stage); }
  __device__ __forceinline__ uint32_t q_empty(int stage) const { return at(2 + stage); }
  __device__ __forceinline__ uint32_t slot_full(int stage) const { return at(4 + stage); }
  __device__ __forceinline__ uint32_t slot_empty(int stage) const { return at(6 + stage); }
  // ds_full: dS of both blocks has arrived. ds_empty: both blocks have consumed it.
  __device__ __forceinline__ uint32_t ds_full() const { return at(8); }
  __device__ __forceinline__ uint32_t ds_empty() const { return at(9); }
  __device__ __forceinline__ uint32_t dy_full() const { return at(10); }
  __device__ __forceinline__ uint32_t dy_empty() const { return at(11); }
  __device__ __forceinline__ uint32_t k_full() const { return at(12); }
  __device__ __forceinline__ uint32_t k_empty() const { return at(13); }
  __device__ __forceinline__ uint32_t v_full() const { return at(14); }
  __device__ __forceinline__ uint32_t v_empty() const { return at(15); }
  // The consumers have read the first rows of the latest key tile.
  __device__ __forceinline__ uint32_t first_rows_empty() const { return at(16); }
  // Ordered steps only. tile_due: the block may take its next key tile. next_tile_full: the first
  // block has told the other block which tile it is. next_tile_empty: it may tell the next one.
  __device__ __forceinline__ uint32_t tile_due() const { return at(17); }
  __device__ __forceinline__ uint32_t next_tile_full() const { return at(18); }
  __device__ __forceinline__ uint32_t next_tile_empty() const { return at(19); }
  // dq_ready: a piece of dQ is in the buffer, for one of the two adding warps. dq_read: the buffer
  // has been read.
  __device__ __forceinline__ uint32_t dq_ready(int adder, int buffer) const {
    return at(20 + 2 * adder + buffer);
  }
  __device__ __forceinline__ uint32_t dq_read(int buffer) const { return at(24 + buffer); }

  // Named barriers: two inside the warpgroup of dQ, and two for P between the other warpgroups. All
  // threads arrive, because racecheck would otherwise report a race.
  static constexpr int dq_free = 1, dq_full = 2, p_full = 3, p_empty = 4;

  __device__ __forceinline__ void init() const {
    constexpr int readers = 4 * 2;  // the warps of two warpgroups
    constexpr int blocks = C::multicast ? 2 : 1;
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(q_full(i), 1);
      mbarrier_init(q_empty(i), readers * blocks);
      mbarrier_init(slot_full(i), 32);
      mbarrier_init(slot_empty(i), 4 * C::consumers + 1 + 2 * C::ordered);
    }
    mbarrier_init(ds_full(), 4);
    mbarrier_init(ds_empty(), 4 * 2);  // of both blocks
    mbarrier_init(dy_full(), 1);
    mbarrier_init(dy_empty(), readers * blocks);
    mbarrier_init(k_full(), 1);
    mbarrier_init(k_empty(), readers);
    mbarrier_init(v_full(), 1);
    mbarrier_init(v_empty(), 4);
    mbarrier_init(first_rows_empty(), readers);
    if constexpr (C::ordered) {
      for (uint32_t barrier : {tile_due(), next_tile_full(), next_tile_empty()})
        mbarrier_init(barrier, 1);
      for (int i = 0; i < 2; ++i) {
        for (int adder = 0; adder < 2; ++adder) mbarrier_init(dq_ready(adder, i), 4);
        mbarrier_init(dq_read(i), 1);
      }
    }
    mbarrier_init_fence();
  }

 private:
  __device__ __forceinline__ uint32_t at(int index) const { return base + 8 * index; }
};

}  // namespace baracuda::sm90::backward
