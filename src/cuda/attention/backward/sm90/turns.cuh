// Taking turns at the sums of dQ, see order.h: the words and the counter in memory.
#pragma once

#include "attention/backward/sm90/order.h"
#include "attention/backward/sm90/schedule.cuh"
#include "common/global_access.cuh"

namespace baracuda::sm90::backward {

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

// Key tiles as blocks draw them.
class DrawnTiles {
 public:
  __device__ __forceinline__ bool next(const Args& args, KeyTile& tile) {
    const int n = draw(args);
    if (n >= args.batch_kv_heads * args.key_tiles) return false;
    const DrawnTile drawn = drawn_tile(n, args.section, args.section_tiles, args.batch_kv_heads,
                                       args.key_tiles, args.shortest_first);
    tile.index = drawn.index;
    tile.descends = args.causal && drawn.rises;
    tile.batch = args.kv_heads.quotient(drawn.head);
    tile.kv_head = drawn.head - tile.batch * static_cast<int>(args.kv_heads.divisor);
    return true;
  }

 private:
  // Every block draws in vain once: the last to do so puts the counter back.
  __device__ __forceinline__ int draw(const Args& args) {
    if (args.turns == nullptr) {
      const int n = mine_;
      mine_ += static_cast<int>(gridDim.x);
      return n;
    }
    uint32_t n = 0;
    if (threadIdx.x % 32 == 0) {
      uint32_t* const counter = args.turns - 1;
      n = atomicAdd(counter, 1u);
      if (n == args.batch_kv_heads * args.key_tiles + gridDim.x - 1) *counter = 0;
    }
    return static_cast<int>(__shfl_sync(0xffffffffu, n, 0));
  }

  int mine_ = static_cast<int>(blockIdx.x);  // without rows there is no order, and no counter
};

}  // namespace baracuda::sm90::backward
