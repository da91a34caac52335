// The barriers of the sm90a backward kernel, and what its copying warp tells of a key tile.
#pragma once

#include "attention/backward/sm90/config.h"
#include "common/mbarrier.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm90::backward {

// Addresses of the barriers. "full": the data has arrived; "empty": every warp that reads it is
// done. A tile of dS is read by one warpgroup alone. Slots come and go with K.
template <typename C>
struct Barriers {
  uint32_t base;
  __device__ __forceinline__ uint32_t q_full(int stage) const { return base + 8 * stage; }
  __device__ __forceinline__ uint32_t q_empty(int stage) const {
    return base + 8 * (C::stages + stage);
  }
  __device__ __forceinline__ uint32_t dy_full(int stage) const {
    return base + 8 * (2 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t dy_empty(int stage) const {
    return base + 8 * (3 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t k_full(int stage) const {
    return base + 8 * (4 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t k_empty(int stage) const {
    return base + 8 * (5 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t slot_full(int stage) const {
    return base + 8 * (6 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t v_full(int stage) const {
    return base + 8 * (7 * C::stages + stage);
  }
  __device__ __forceinline__ uint32_t v_empty(int stage) const {
    return base + 8 * (7 * C::stages + C::v_stages + stage);
  }
  __device__ __forceinline__ uint32_t ds_empty(int stage) const {
    return base + 8 * (7 * C::stages + 2 * C::v_stages + stage);
  }
  // A named one: the warpgroup that makes dQ of the stage waits, the others only arrive.
  static __device__ __forceinline__ int ds_full(int stage) { return 1 + stage; }

  __device__ __forceinline__ void init() const {
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(q_full(i), 1);
      mbarrier_init(dy_full(i), 1);
      mbarrier_init(k_full(i), 1);
      mbarrier_init(slot_full(i), 32);
      mbarrier_init(q_empty(i), 4 * C::consumers);
      mbarrier_init(dy_empty(i), 4 * C::consumers);
      mbarrier_init(k_empty(i), 4 * C::consumers);
    }
    for (int i = 0; i < C::v_stages; ++i) {
      mbarrier_init(v_full(i), 1);
      mbarrier_init(v_empty(i), 4 * C::consumers);
    }
    for (int i = 0; i < C::ds_stages; ++i) mbarrier_init(ds_empty(i), 4);
    mbarrier_init_fence();
  }
};

// What the consumers must know of the n-th key tile.
template <typename C>
class Slot {
 public:
  __device__ __forceinline__ Slot(uint32_t shared, uint32_t n)
      : address_(shared + C::slots_offset + stage_of<C::stages>(n) * C::slot_bytes) {}

  // Query tiles of a head; -1: no more work.
  __device__ __forceinline__ int count() const { return shared_load(address_); }
  __device__ __forceinline__ int first() const { return shared_load(address_ + 4); }
  __device__ __forceinline__ int begin() const { return shared_load(address_ + 8); }
  __device__ __forceinline__ int batch() const { return shared_load(address_ + 16); }
  __device__ __forceinline__ int kv_head() const { return shared_load(address_ + 20); }
  __device__ __forceinline__ int key0() const { return shared_load(address_ + 24); }
  // The first row that sees the tile's i-th key.
  __device__ __forceinline__ int first_row(int i) const {
    return shared_load(address_ + 32 + 4 * i);
  }

  // The row from which on rows see all keys of the tile.
  __device__ __forceinline__ int whole_from() const { return first_row(C::block_n - 1); }

  __device__ __forceinline__ void set_first_row(int i, int row) const {
    shared_store(address_ + 32 + 4 * i, row);
  }
  __device__ __forceinline__ void set_end() const { shared_store(address_, -1); }
  __device__ __forceinline__ void set_queries(int count, int first, int begin) const {
    shared_store(address_, count);
    shared_store(address_ + 4, first);
    shared_store(address_ + 8, begin);
  }
  __device__ __forceinline__ void set_tile(int batch, int kv_head, int key0) const {
    shared_store(address_ + 16, batch);
    shared_store(address_ + 20, kv_head);
    shared_store(address_ + 24, key0);
  }

 private:
  uint32_t address_;
};

}  // namespace baracuda::sm90::backward
