// Taking turns at the sums of dQ, see backward/order.h: the words and the counter in memory.
#pragma once

#include "attention/backward/order.h"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/schedule.cuh"
#include "common/cluster.cuh"
#include "common/global_access.cuh"

namespace baracuda::sm90::backward {

// Where the sum of a key tile begins, in query tiles of all heads.
__device__ __forceinline__ int sum_of(const Args& args, int index) {
  return sum_of_key_tile(index, args.log2_sums) * args.dq_tiles;
}

// True: there are no sums yet.
__device__ __forceinline__ bool await_turn(const uint32_t* word, const KeyTileTurn& turn, int m) {
  uint32_t found = load_acquire(word);
  if (turn.waits(m))
    while (found != turn.awaited()) found = load_acquire(word);
  fence_copies();
  return found == no_sums;
}
// Once the addition has landed.
__device__ __forceinline__ void pass_turn(uint32_t* word, const KeyTileTurn& turn, int m) {
  fence_copies();
  store_release(word, turn.left_at(m));
}

// Key tiles as blocks draw them; of a pair the first block does, and tells the other.
template <typename C>
class DrawnTiles {
 public:
  __device__ __forceinline__ DrawnTiles(uint32_t shared, const Barriers<C>& barriers)
      : shared_(shared), barriers_(barriers) {}

  // The number of the item-th of this block; false: there is none.
  __device__ __forceinline__ bool next(const Args& args, uint32_t item, int& n) const {
    if constexpr (C::pair) {
      n = draw_for_pair(args, item);
    } else {
      n = draw(args, item);
    }
    return n < args.batch_kv_heads * args.key_tiles;
  }
  static __device__ __forceinline__ KeyTile at(const Args& args, int n) {
    const DrawnTile drawn = drawn_tile(n, args.section, args.section_tiles, args.batch_kv_heads,
                                       args.key_tiles, args.shortest_first);
    KeyTile tile;
    tile.index = drawn.index;
    tile.descends = args.causal && drawn.rises;
    tile.batch = args.kv_heads.quotient(drawn.head);
    tile.kv_head = drawn.head - tile.batch * static_cast<int>(args.kv_heads.divisor);
    return tile;
  }

 private:
  // Every block draws in vain once: the last to do so puts the counter back.
  __device__ __forceinline__ int draw(const Args& args, uint32_t item) const {
    // Without rows there is no order, and no counter.
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
    const uint32_t word = shared_ + C::drawn_offset, parity = item & 1;
    const bool leads = threadIdx.x % 32 == 0;
    if (cluster_rank() == 0) {
      const int n = draw(args, item);
      mbarrier_wait(barriers_.drawn_taken(), parity ^ 1);
      if (leads) store_at(address_at(1, word), n, address_at(1, barriers_.drawn()));
      __syncwarp();
      return n;
    }
    if (leads) mbarrier_arrive_expect(barriers_.drawn(), 4);
    mbarrier_wait(barriers_.drawn(), parity);
    const int n = shared_load(word);
    __syncwarp();
    if (leads) mbarrier_arrive_at(address_at(0, barriers_.drawn_taken()));
    return n;
  }

  static constexpr int cluster = C::pair ? 2 : 1;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
};

}  // namespace baracuda::sm90::backward
