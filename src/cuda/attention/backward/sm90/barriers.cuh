// The barriers of the sm90a backward kernel, and the description of a key tile in shared memory.
#pragma once

#include "attention/backward/sm90/config.h"
#include "attention/backward/sm90/first_stores.cuh"
#include "common/mbarrier.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm90::backward {

// Addresses of the barriers. "full": the data has arrived. "empty": every reading warp is done. One
// warpgroup reads a tile of dS, and TMA reads a tile of dQ.
template <typename C>
struct Barriers {
  uint32_t base;
  __device__ __forceinline__ uint32_t q_full(int stage) const { return at(stage); }
  __device__ __forceinline__ uint32_t q_empty(int stage) const { return at(C::stages + stage); }
  __device__ __forceinline__ uint32_t dy_full(int stage) const { return at(2 * C::stages + stage); }
  __device__ __forceinline__ uint32_t dy_empty(int stage) const {
    return at(3 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t slot_full(int stage) const {
    return at(4 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t slot_empty(int stage) const {
    return at(5 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t k_full(int stage) const { return at(k + stage); }
  __device__ __forceinline__ uint32_t k_empty(int stage) const {
    return at(k + C::k_stages + stage);
  }
  __device__ __forceinline__ uint32_t v_full() const { return at(v); }
  __device__ __forceinline__ uint32_t v_empty() const { return at(v + 1); }
  // The consumers have read the first rows of the latest key tile.
  __device__ __forceinline__ uint32_t first_rows_empty() const { return at(v + 2); }
  __device__ __forceinline__ uint32_t ds_empty(int stage) const { return at(v + 3 + stage); }
  __device__ __forceinline__ uint32_t dq_full(int buffer) const {
    return at(v + 3 + C::ds_stages + buffer);
  }
  // The warpgroup may write its next tile of dQ. Each warpgroup has a barrier of its own: a wait
  // that is more than one phase late could not tell the phases apart.
  __device__ __forceinline__ uint32_t dq_turn(int group) const {
    return at(v + 3 + C::ds_stages + C::dq_stages + group);
  }
  // Pairs only. dS of the other block has arrived for this warpgroup's dQ.
  __device__ __forceinline__ uint32_t remote_ds_full(int group) const { return at(pair + group); }
  // remote_ds_empty: the other block has consumed the dS that this block sent. outgoing_ds_full:
  // all warps have stored the dS to be sent. outgoing_ds_empty: it has been sent.
  __device__ __forceinline__ uint32_t remote_ds_empty() const { return at(pair + 2); }
  __device__ __forceinline__ uint32_t outgoing_ds_full() const { return at(pair + 3); }
  __device__ __forceinline__ uint32_t outgoing_ds_empty() const { return at(pair + 4); }
  // Ordered steps only: the block may take its next key tile.
  __device__ __forceinline__ uint32_t tile_due() const { return at(pair); }
  // A named barrier: the warpgroup that computes dQ of the stage waits, the others only arrive.
  static __device__ __forceinline__ int ds_full(int stage) { return 1 + stage; }

  __device__ __forceinline__ void init() const {
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(q_full(i), 1);
      mbarrier_init(dy_full(i), 1);
      mbarrier_init(slot_full(i), 32);
      mbarrier_init(q_empty(i), 4 * C::consumers);
      mbarrier_init(dy_empty(i), 4 * C::consumers);
      // And the warps that copy tiles in and copy dQ or dS out.
      mbarrier_init(slot_empty(i),
                    4 * C::consumers + 1 + (C::dq_stages > 0) + C::pair + C::ordered + stores_first<C>);
    }
    for (int i = 0; i < C::k_stages; ++i) {
      mbarrier_init(k_full(i), 1);
      mbarrier_init(k_empty(i), 4 * C::consumers);
    }
    mbarrier_init(v_full(), 1);
    mbarrier_init(v_empty(), 4 * C::consumers);
    mbarrier_init(first_rows_empty(), 4 * C::consumers);
    for (int i = 0; i < C::ds_stages; ++i) mbarrier_init(ds_empty(i), 4);
    for (int i = 0; i < C::dq_stages; ++i) mbarrier_init(dq_full(i), 4);
    for (int i = 0; i < C::consumers; ++i) mbarrier_init(dq_turn(i), 1);
    if constexpr (C::ordered) mbarrier_init(tile_due(), 1);
    if constexpr (C::pair) {
      for (int i = 0; i < 2; ++i) mbarrier_init(remote_ds_full(i), 1);
      mbarrier_init(remote_ds_empty(), 4);
      mbarrier_init(outgoing_ds_full(), 4 * C::consumers);
      mbarrier_init(outgoing_ds_empty(), 1);
    }
    mbarrier_init_fence();
  }

 private:
  static constexpr int k = 6 * C::stages, v = k + 2 * C::k_stages;
  static constexpr int pair = v + 3 + C::ds_stages + C::dq_stages + C::consumers;
  __device__ __forceinline__ uint32_t at(int index) const { return base + 8 * index; }
};

// The n-th key tile of a block, which the scheduler warp describes for the other warps.
template <typename C>
class WorkTile {
 public:
  __device__ __forceinline__ WorkTile(uint32_t shared, uint32_t n)
      : address_(shared + C::slots_offset + stage_of<C::stages>(n) * C::slot_bytes) {}

  // Number of query tiles of a head; -1: no more work.
  __device__ __forceinline__ int count() const { return shared_load(address_); }
  __device__ __forceinline__ int begin() const { return shared_load(address_ + 4); }
  __device__ __forceinline__ int step() const { return shared_load(address_ + 8); }
  __device__ __forceinline__ int batch() const { return shared_load(address_ + 16); }
  __device__ __forceinline__ int kv_head() const { return shared_load(address_ + 20); }
  __device__ __forceinline__ int key0() const { return shared_load(address_ + 24); }
  // Ordered steps only: the first query tile that sees the next key tile of the same sum of dQ.
  __device__ __forceinline__ int next_begin() const { return shared_load(address_ + 28); }
  // Ordered steps at head_dim 256 only: query tile 0 of the first head of the group, in the key
  // tile's sum of dQ. It is counted over all heads and sums.
  __device__ __forceinline__ int first_tile() const { return shared_load(address_ + 32); }
  // The key tile's index among the key tiles of that sum.
  __device__ __forceinline__ int place() const { return shared_load(address_ + 36); }
  // The first row that sees all keys of the tile; later rows do too.
  __device__ __forceinline__ int first_unmasked_row() const { return shared_load(address_ + 12); }

  __device__ __forceinline__ void set_end() const { shared_store(address_, -1); }
  __device__ __forceinline__ void set_queries(int count, int begin, int step,
                                              int first_unmasked_row) const {
    shared_store(address_, count);
    shared_store(address_ + 4, begin);
    shared_store(address_ + 8, step);
    shared_store(address_ + 12, first_unmasked_row);
  }
  __device__ __forceinline__ void set_tile(int batch, int kv_head, int key0) const {
    shared_store(address_ + 16, batch);
    shared_store(address_ + 20, kv_head);
    shared_store(address_ + 24, key0);
  }
  __device__ __forceinline__ void set_next_begin(int begin) const {
    shared_store(address_ + 28, begin);
  }
  __device__ __forceinline__ void set_sum(int first_tile, int place) const {
    shared_store(address_ + 32, first_tile);
    shared_store(address_ + 36, place);
  }

 private:
  uint32_t address_;
};

// The first row that sees each key of the n-th key tile. With !C::keeps_rows: of the tile that was
// described last.
template <typename C>
class FirstRows {
 public:
  __device__ __forceinline__ FirstRows(uint32_t shared, uint32_t n)
      : address_(shared + C::rows_offset +
                 (C::keeps_rows ? stage_of<C::stages>(n) * 4 * C::block_n : 0)) {}

  __device__ __forceinline__ int get(int key) const { return shared_load(address_ + 4 * key); }
  __device__ __forceinline__ void set(int key, int row) const {
    shared_store(address_ + 4 * key, row);
  }

 private:
  uint32_t address_;
};

}  // namespace baracuda::sm90::backward
