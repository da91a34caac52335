// The copying side of the sm90a kernel: one warp for K and V, one for each consumer's Q.
#pragma once

#include "attention/sm90/barriers.cuh"
#include "attention/sm90/prefetch.cuh"
#include "attention/sm90/schedule.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90 {

template <typename C>
__device__ __forceinline__ int key_tiles(int keys) {
  return (keys + C::block_n - 1) / C::block_n;
}

// Steps that neither begin nor end a ring leave alone the tiles that see no key.
template <typename C, bool First, bool Last>
class Work {
 public:
  Tile tile;
  int tiles;  // key tiles

  __device__ __forceinline__ bool next(const StepArgs& args) {
    while (walk_.next(args, C::block_m, tile)) {
      tiles = key_tiles<C>(row_limit(args, int64_t{tile.row0} + C::block_m - 1));
      if (First || Last || tiles > 0) return true;
    }
    tiles = -1;
    return false;
  }

 private:
  TileWalk walk_;
};

// A warp, in step; its first lane copies. For each query tile its key tiles from the last to the
// first, K one tile ahead of V as the consumers want them.
template <typename C, bool First, bool Last>
class KeyProducer {
 public:
  __device__ __forceinline__ KeyProducer(const HopperArgs& args, uint32_t shared,
                                         const Barriers<C>& barriers)
      : args_(args), shared_(shared), barriers_(barriers), policy_(l2_evict_last()) {}

  __device__ __forceinline__ void run() {
    Work<C, First, Last> work;
    uint32_t turn = 0;  // key tiles of K copied so far; V is one behind
    KeyTile previous{};
    for (bool more = work.next(args_.step); more;) {
      const int tiles = work.tiles;
      const int batch = work.tile.batch(args_.step);
      const int kv_head = work.tile.kv_head(args_.step);
      more = work.next(args_.step);
      StatePrefetch<C> prefetch(args_.step, work.tile, !First && work.tiles > 0, tiles);
#pragma unroll 1
      for (int t = tiles - 1; t >= 0; --t, ++turn) {
        const KeyTile tile{batch, kv_head, t};
        load_k(turn, tile);
        if (turn > 0) load_v(turn - 1, previous);
        previous = tile;
        if constexpr (!First && !C::stages_state) prefetch.some();
      }
    }
    if (turn > 0) load_v(turn - 1, previous);
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
      for (int i = 0; i < C::column_blocks; ++i)
        tma_load_4d(dst + i * C::kv_block_bytes, &map, full, 64 * i, tile.index * C::block_n,
                    tile.kv_head, tile.batch, policy_);
    }
    __syncwarp();
  }

  const HopperArgs& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const uint64_t policy_;
};

// Moves one warpgroup's state between memory and its buffer, in a single thread: out once a tile is
// done, and in again for the next while that one's products run.
template <typename C, bool First, bool Last>
class StateMover {
 public:
  __device__ __forceinline__ StateMover(const StepArgs& args, uint32_t shared,
                                        const Barriers<C>& barriers, int group)
      : args_(args),
        buffer_(shared + C::state_offset + group * C::state_bytes),
        full_(barriers.state_full(group)),
        done_(barriers.state_done(group)) {}

  // The n-th tile comes next.
  __device__ __forceinline__ void advance(uint32_t n, int batch_head, int row0) {
    if (n > 0) put_away(n - 1);
    bulk_stores_read();
    const int64_t left = args_.query_len - row0;
    bytes_ = left <= 0 ? 0 : (left < C::group_m ? static_cast<int>(left) : C::group_m) * row_bytes;
    address_ = static_cast<char*>(args_.state) +
               (batch_head * args_.query_len + row0) * row_bytes;
    if (First || bytes_ == 0) {
      mbarrier_arrive(full_);  // the buffer is free
    } else {
      mbarrier_arrive_expect(full_, bytes_);
      bulk_load(buffer_, address_, bytes_, full_);
    }
  }
  __device__ __forceinline__ void finish(uint32_t tiles) {
    if (tiles > 0) put_away(tiles - 1);
    bulk_stores_done();
  }

 private:
  static constexpr int row_bytes = C::head_dim * 4;

  __device__ __forceinline__ void put_away(uint32_t n) const {
    mbarrier_wait(done_, parity_of<1>(n));
    if (!Last && bytes_ > 0) bulk_store(address_, buffer_, bytes_);
  }

  const StepArgs& args_;
  const uint32_t buffer_, full_, done_;
  char* address_ = nullptr;  // the tile's in memory
  int bytes_ = 0;
};

// A warp, in step: works out each query tile for one consumer warpgroup, and copies its Q as soon
// as the warpgroup has taken the last scores of the tile before.
template <typename C, bool First, bool Last>
__device__ __forceinline__ void produce_queries(const HopperArgs& args, uint32_t shared,
                                                const Barriers<C>& barriers, int group) {
  const StepArgs& step = args.step;
  const int lane = threadIdx.x % 32;
  const uint64_t policy = l2_evict_first();
  constexpr bool staged = C::stages_state && !(First && Last);
  StateMover<C, First, Last> state(step, shared, barriers, group);
  Work<C, First, Last> work;
  for (uint32_t n = 0;; ++n) {
    const bool more = work.next(step);
    const Slot<C> slot(shared, group, n);
    const int row0 = work.tile.row0 + group * C::group_m;
    const int batch = more ? work.tile.batch(step) : 0;
    const int head = more ? work.tile.head(step) : 0;
    int seen = 0;
    if (more) {
      int keys = 0;
#pragma unroll
      for (int i = lane; i < C::group_m; i += 32) {
        keys = row_limit(step, int64_t{row0} + i);
        slot.set_limit(i, keys);
      }
      keys = __shfl_sync(0xffffffffu, keys, 31);
      seen = row0 < step.query_len ? key_tiles<C>(keys) : 0;
    }
    if (lane == 0) slot.set(work.tile.batch_head, batch, head, row0, work.tiles, seen);
    mbarrier_arrive(barriers.slot_full(group, n % C::slots));
    if (!more) {
      if (staged && lane == 0) state.finish(n);
      return;
    }
    if (n > 0 && seen > 0) prefetch_queries<C>(step, batch, head, row0);
    mbarrier_wait(barriers.q_empty(group), parity_of<1>(n) ^ 1);
    const uint32_t full = barriers.q_full(group);
    if (lane == 0 && seen > 0) {
      const uint32_t dst = shared + group * C::q_bytes;
      mbarrier_arrive_expect(full, C::q_bytes);
#pragma unroll
      for (int i = 0; i < C::column_blocks; ++i)
        tma_load_4d(dst + i * C::q_block_bytes, &args.q, full, 64 * i, row0, head, batch, policy);
    } else if (lane == 0) {
      mbarrier_arrive(full);  // not read, but counted
    }
    if (staged && lane == 0) state.advance(n, work.tile.batch_head, row0);
    __syncwarp();
  }
}

}  // namespace baracuda::sm90
