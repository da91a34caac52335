// The ordered additions to dQ (see backward/order.h): the words of query tiles and the counter of
// key tiles.
#pragma once

#include "attention/backward/order.h"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/key_tiles.cuh"
#include "common/cluster.cuh"
#include "common/global_access.cuh"

namespace baracuda::sm90::backward {

// The first query tile of a key tile's sum, counted over all sums and heads.
__device__ __forceinline__ int sum_of(const Args& args, int index) {
  return sum_of_key_tile(index, args.log2_sums) * args.dq_tiles;
}

// Waits for the key tile's turn. True if there are no sums yet.
__device__ __forceinline__ bool await_turn(const uint32_t* word, const KeyTileTurn& turn, int m) {
  uint32_t found = load_acquire(word);
  if (turn.waits(m))
    while (found != turn.awaited()) found = load_acquire(word);
  fence_copies();
  return found == no_sums;
}
// Passes the turn on. Call it once the addition is complete.
__device__ __forceinline__ void pass_turn(uint32_t* word, const KeyTileTurn& turn, int m) {
  fence_copies();
  store_release(word, turn.left_at(m));
}

// A dynamic scheduler: blocks take key tiles from a counter. In a pair the first block takes them,
// and tells the other block.
template <typename C>
class DynamicKeyTileScheduler {
 public:
  __device__ __forceinline__ DynamicKeyTileScheduler(uint32_t shared, const Barriers<C>& barriers)
      : shared_(shared), barriers_(barriers) {}

  // The number of this block's item-th key tile. False if there is none.
  __device__ __forceinline__ bool next(const Args& args, uint32_t item, int& n) const {
    if constexpr (C::pair) {
      n = draw_for_pair(args, item);
    } else {
      n = draw(args, item);
    }
    return n < args.batch_kv_heads * args.key_tiles;
  }
  static __device__ __forceinline__ KeyTile at(const Args& args, int n) {
    const DrawnTile drawn =
        drawn_tile(n, args.section, args.section_tiles, args.batch_kv_heads, args.key_tiles,
                   args.shortest_first);
    KeyTile tile;
    tile.index = drawn.index;
    tile.descends = args.borders_vary && drawn.rises;
    tile.batch = args.kv_heads.quotient(drawn.head);
    tile.kv_head = drawn.head - tile.batch * static_cast<int>(args.kv_heads.divisor);
    return tile;
  }

 private:
  // Every block finds the counter exhausted once; the last block to do so resets it.
  __device__ __forceinline__ int draw(const Args& args, uint32_t item) const {
    // Without rows there is no scratch and no counter.
    if (args.turns == nullptr)
      return static_cast<int>((blockIdx.x + item * gridDim.x) / cluster);
    uint32_t n = 0;
    if (threadIdx.x % 32 == 0) {
      uint32_t* const counter = args.turns - 1;
      n = atomicAdd(counter, 1u);
      if (n == args.batch_kv_heads * args.key_tiles + gridDim.x / cluster - 1) *counter = 0;
    }
    return static_cast<int>(__shfl_sync(0xffffffffu, n, 0));
  }

  __device__ __forceinline__ int draw_for_pair(const Args& args, uint32_t item) const {
    const uint32_t word = shared_ + C::next_tile_offset, parity = item & 1;
    const bool leads = threadIdx.x % 32 == 0;
    if (cluster_rank() == 0) {
      const int n = draw(args, item);
      mbarrier_wait(barriers_.next_tile_empty(), parity ^ 1);
      if (leads) store_at(address_at(1, word), n, address_at(1, barriers_.next_tile_full()));
      __syncwarp();
      return n;
    }
    if (leads) mbarrier_arrive_expect(barriers_.next_tile_full(), 4);
    mbarrier_wait(barriers_.next_tile_full(), parity);
    const int n = shared_load(word);
    __syncwarp();
    if (leads) mbarrier_arrive_at(address_at(0, barriers_.next_tile_empty()));
    return n;
  }

  static constexpr int cluster = C::pair ? 2 : 1;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
};

}  // namespace baracuda::sm90::backward
