// The producer warps of the sm90a kernel: one for K and V, and one for each consumer's Q.
#pragma once

#include <type_traits>

#include "attention/forward/sm90/barriers.cuh"
#include "attention/forward/sm90/masked_rows.cuh"
#include "attention/forward/sm90/prefetch.cuh"
#include "attention/forward/sm90/work_tiles.cuh"
#include "common/cluster.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90 {

template <typename C>
__device__ __forceinline__ int key_tiles(int keys) {
  return (keys + C::block_n - 1) / C::block_n;
}

// Walks the query tiles of a block. A step that neither begins nor ends a state skips query tiles
// that see no key.
template <typename C, bool First, bool Last>
class WorkTileScheduler {
 public:
  Tile tile;
  int tiles;  // key tiles that `tile` sees, or all tiles of the cluster; -1: there is no more work

  __device__ __forceinline__ explicit WorkTileScheduler(const HopperArgs& args)
      : scheduler_(args) {}

  __device__ __forceinline__ bool next(const HopperArgs& args) {
    while (scheduler_.next(args, C::cluster_m, tile)) {
      tiles = key_tiles<C>(row_limit(args, static_cast<uint32_t>(tile.row0) + C::cluster_m - 1));
      if constexpr (C::cluster > 1) tile.row0 += cluster_rank() * C::block_m;
      if (First || Last || tiles > 0) return true;
    }
    tiles = -1;
    return false;
  }

 private:
  std::conditional_t<First, FirstStepScheduler<C::cluster>, LaterStepScheduler<C::cluster>>
      scheduler_;
};

// The warp that copies K and V; its first lane issues the copies. It copies the key tiles of each
// query tile from the last to the first. Within a query tile the copies of K are one key tile ahead
// of the copies of V, because the consumers use K and V in that order. The next query tile is found
// early, so that nothing delays the last copy of V or the next copies of K, for which the consumers
// wait at the end of a query tile.
template <typename C, bool First, bool Last>
class KeyProducer {
 public:
  __device__ __forceinline__ KeyProducer(const HopperArgs& args, uint32_t shared,
                                         const Barriers<C>& barriers)
      : args_(args),
        shared_(shared),
        barriers_(barriers),
        policy_(keeps_keys<First, Last>(args.step) ? l2_evict_last() : l2_evict_first()) {}

  // Begins with the current tile of `work`. more: whether there is one.
  __device__ __forceinline__ void run(WorkTileScheduler<C, First, Last>& work, bool more) {
    constexpr bool prefetches = Last && !First && C::loads_state_early;
    uint32_t iteration = 0;  // number of copied tiles of K
    while (more) {
      const int tiles = work.tiles;
      KeyTile tile{work.tile.batch(args_), work.tile.kv_head(args_), tiles - 1};
      StatePrefetch<C> prefetch;
      if (tiles > 0) load_k(iteration++, tile);
      more = work.next(args_);
      if constexpr (prefetches) {
        if (tiles > 0 && work.tiles > 0) prefetch.begin(args_.step, work.tile, tiles);
      }
#pragma unroll 1
      for (; tile.index >= 0; --tile.index) {
        if constexpr (prefetches) prefetch.issue_part();
        if (tile.index > 0) load_k(iteration++, {tile.batch, tile.kv_head, tile.index - 1});
        load_v(iteration - (tile.index > 0 ? 2 : 1), tile);
      }
    }
  }

 private:
  struct KeyTile {
    int batch, kv_head, index;
  };

  __device__ __forceinline__ void load_k(uint32_t n, const KeyTile& tile) const {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers_.k_empty(stage), parity_of<C::stages>(n) ^ 1);
    load(args_.k, barriers_.k_full(stage), shared_ + C::k_offset + stage * C::kv_bytes, tile);
  }
  __device__ __forceinline__ void load_v(uint32_t n, const KeyTile& tile) const {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers_.v_empty(stage), parity_of<C::stages>(n) ^ 1);
    load(args_.v, barriers_.v_full(stage), shared_ + C::v_offset + stage * C::kv_bytes, tile);
  }
  __device__ __forceinline__ void load(const CUtensorMap& map, uint32_t full, uint32_t dst,
                                       const KeyTile& tile) const {
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive_expect(full, C::kv_bytes);
#pragma unroll
      for (int i = 0; i < C::column_blocks; ++i) {
        const uint32_t block = dst + i * C::kv_block_bytes;
        const int row = tile.index * C::block_n;
        if constexpr (C::cluster == 1) {
          tma_load_4d(block, &map, full, 64 * i, row, tile.kv_head, tile.batch, policy_);
        } else {
          const int part = cluster_rank() * C::copied_n;
          tma_load_4d_to_pair(block + part * 128, &map, full, 64 * i, row + part, tile.kv_head,
                              tile.batch, policy_);
        }
      }
    }
    __syncwarp();
  }

  const HopperArgs& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const uint64_t policy_;
};

// The producer warp of one consumer warpgroup. It describes each query tile in a slot (WorkTile,
// barriers.cuh), and copies the Q of the tile as soon as there is a place for it. If outputs are
// staged in the places of Q, it sends them, too. It begins with the current tile of `work`. more:
// whether there is one.
template <typename C, bool First, bool Last>
__device__ __forceinline__ void produce_queries(const HopperArgs& args, uint32_t shared,
                                                const Barriers<C>& barriers, int group,
                                                WorkTileScheduler<C, First, Last>& work,
                                                bool more) {
  const StepArgs& step = args.step;
  const int lane = threadIdx.x % 32;
  const uint64_t policy = First && Last ? l2_evict_first() : l2_evict_last();
  // Without TakeTurns (config.h) the consumers drift apart until one is ahead of the other by about
  // half the time of a key tile, and it stays ahead. This wait lets the first consumer start first
  // in every block. Without the wait, steps that continue a state take up to 4 % longer (chunks of
  // 1024 rows; 0.3 % at 4096).
  if (!First && !C::take_turns && group > 0 && more) mbarrier_wait(barriers.q_full(group - 1, 0), 0);
  // Waits until the place of Q of query tile n is free, and sends the outputs that are in it.
  const auto await_place = [&](uint32_t n) {
    const int stage = stage_of<C::q_stages>(n);
    mbarrier_wait(barriers.q_empty(group, stage), parity_of<C::q_stages>(n) ^ 1);
    if constexpr (Last && C::stages_in_q) {
      if (lane != 0 || n < C::q_stages || !args.maps_y) return;
      const WorkTile<C> done(shared, group, n - C::q_stages);
#pragma unroll
      for (int i = 0; i < C::column_blocks; ++i)
        tma_store_4d(&args.y, shared + C::q_offset(group, n) + i * C::q_block_bytes, 64 * i,
                     done.row0(), done.head(), done.batch());
      tma_commit();
      tma_wait_read<0>();
    }
  };
  for (uint32_t n = 0;; ++n, more = work.next(args)) {
    const WorkTile<C> slot(shared, group, n);
    const int row0 = work.tile.row0 + group * C::group_m;
    const int batch = more ? work.tile.batch(args) : 0;
    const int head = more ? work.tile.head(args) : 0;
    const auto copy_queries = [&] {
      await_place(n);
      if (lane != 0) return;
      const uint32_t full = barriers.q_full(group, stage_of<C::q_stages>(n));
      if (work.tiles > 0 && row0 < step.query_len) {
        const uint32_t dst = shared + C::q_offset(group, n);
        mbarrier_arrive_expect(full, C::q_bytes);
#pragma unroll
        for (int i = 0; i < C::column_blocks; ++i)
          tma_load_4d(dst + i * C::q_block_bytes, &args.q, full, 64 * i, row0, head, batch, policy);
      } else {
        mbarrier_arrive(full);  // no consumer reads Q, but the phase must complete
      }
    };
    if (n == 0 && more) copy_queries();  // first of all, since the consumers wait for it
    int seen = 0;
    if (more) {
      int keys = 0;
#pragma unroll
      for (int i = lane; i < C::group_m; i += 32) {
        keys = row_limit(args, static_cast<uint32_t>(row0) + i);
        slot.set_limit(i, keys);
      }
      keys = __shfl_sync(0xffffffffu, keys, 31);
      seen = row0 < step.query_len ? key_tiles<C>(keys) : 0;
    }
    if (lane == 0) slot.set(work.tile.batch_head, batch, head, row0, work.tiles, seen);
    mbarrier_arrive(barriers.slot_full(group, n % C::slots));
    if (!more) {
      // If the next step does not overlap this one, all its blocks load their first rows of Q at
      // the same time. So the rows that this block began with are prefetched here. The next step
      // usually begins with the same rows; if it does not, the prefetch is of no use.
      if (!Last && args.leaves_processors) {
        WorkTileScheduler<C, First, Last> again(args);
        if (again.next(args))
          prefetch_queries<C>(step, again.tile.batch(args), again.tile.head(args),
                              again.tile.row0 + group * C::group_m);
      }
      FullyMaskedRows<C, First, Last>(args).run(blockIdx.x * C::consumers + group,
                                                gridDim.x * C::consumers);
      if constexpr (Last && C::stages_in_q) {
        for (uint32_t i = 0; i < C::q_stages; ++i) await_place(n + i);
      }
      return;
    }
    if (n > 0) {
      // With two places the copy itself is early enough.
      if (C::q_stages == 1 && seen > 0) prefetch_queries<C>(step, batch, head, row0);
      copy_queries();
    }
    __syncwarp();
  }
}

}  // namespace baracuda::sm90
