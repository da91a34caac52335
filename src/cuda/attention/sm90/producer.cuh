// The copying side of the sm90a kernel.
#pragma once

#include "attention/sm90/config.h"
#include "attention/sm90/schedule.cuh"
#include "common/mbarrier.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90 {

// Addresses of the barriers. "full": the copy has arrived; "empty": every consumer warp is done.
template <typename C>
struct Barriers {
  uint32_t base;
  __device__ __forceinline__ uint32_t q_full() const { return base; }
  __device__ __forceinline__ uint32_t q_empty() const { return base + 8; }
  __device__ __forceinline__ uint32_t k_full(int stage) const { return base + 16 + 8 * stage; }
  __device__ __forceinline__ uint32_t k_empty(int stage) const {
    return k_full(stage) + 8 * C::stages;
  }
  __device__ __forceinline__ uint32_t v_full(int stage) const {
    return k_full(stage) + 16 * C::stages;
  }
  __device__ __forceinline__ uint32_t v_empty(int stage) const {
    return k_full(stage) + 24 * C::stages;
  }
  __device__ __forceinline__ void init() const {
    mbarrier_init(q_full(), 1);
    mbarrier_init(q_empty(), 4 * C::consumers);
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(k_full(i), 1);
      mbarrier_init(v_full(i), 1);
      mbarrier_init(k_empty(i), 4 * C::consumers);
      mbarrier_init(v_empty(i), 4 * C::consumers);
    }
    mbarrier_init_fence();
  }
};

// Stage of the n-th tile that passes through, and the parity of that stage's round.
template <int Stages>
__device__ __forceinline__ int stage_of(uint32_t n) {
  return n % Stages;
}
template <int Stages>
__device__ __forceinline__ uint32_t parity_of(uint32_t n) {
  return n / Stages & 1;
}

// One thread: for each tile Q, then K and V of its key tiles from the last to the first, K one tile
// ahead of V as the consumers want them.
template <typename C>
__device__ __forceinline__ void produce(const HopperArgs& args, uint32_t shared,
                                        const Barriers<C>& barriers) {
  const uint64_t once = l2_evict_first();
  const uint64_t again = l2_evict_last();
  uint32_t turn = 0;  // key tiles copied so far
  uint32_t q_parity = 0;
  int kv_head, batch;
  const auto load = [&](const CUtensorMap& map, uint32_t full, uint32_t dst, int tile) {
    mbarrier_arrive_expect(full, C::kv_bytes);
#pragma unroll
    for (int i = 0; i < C::column_blocks; ++i)
      tma_load_4d(dst + i * C::kv_block_bytes, &map, full, 64 * i, tile * C::block_n, kv_head,
                  batch, again);
  };
  const auto load_k = [&](uint32_t n, int tile) {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers.k_empty(stage), parity_of<C::stages>(n) ^ 1);
    load(args.k, barriers.k_full(stage), shared + C::k_offset + stage * C::kv_bytes, tile);
  };
  const auto load_v = [&](uint32_t n, int tile) {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers.v_empty(stage), parity_of<C::stages>(n) ^ 1);
    load(args.v, barriers.v_full(stage), shared + C::v_offset + stage * C::kv_bytes, tile);
  };
  Tile tile;
  for (TileWalk walk; walk.next(args.step, C::block_m, tile);) {
    const int keys = row_limit(args.step, int64_t{tile.row0} + C::block_m - 1);
    const int tiles = (keys + C::block_n - 1) / C::block_n;
    if (tiles == 0) continue;
    kv_head = tile.kv_head(args.step);
    batch = tile.batch(args.step);
    mbarrier_wait(barriers.q_empty(), q_parity ^ 1);
    q_parity ^= 1;
    mbarrier_arrive_expect(barriers.q_full(), C::q_bytes);
#pragma unroll
    for (int i = 0; i < C::column_blocks; ++i)
      tma_load_4d(shared + i * C::q_block_bytes, &args.q, barriers.q_full(), 64 * i, tile.row0,
                  tile.head(args.step), batch, once);
    load_k(turn, tiles - 1);
#pragma unroll 1
    for (int t = tiles - 1; t > 0; --t, ++turn) {
      load_k(turn + 1, t - 1);
      load_v(turn, t);
    }
    load_v(turn++, 0);
  }
}

}  // namespace baracuda::sm90
