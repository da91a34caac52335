// Ordered steps on sm80: the key tile that a block has taken, and its turns at the sums of dQ (see
// backward/order.h).
#pragma once

#include "attention/backward/order.h"
#include "attention/backward/sm80/args.cuh"
#include "common/global_access.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm80::backward {

// One thread of a block takes its turns. Its data are in shared memory. A query tile uses one of
// two slots, by its stage. dQ of a tile is computed while the block processes the next tile, and
// all additions are complete at the barrier after that. So during the products of query tile m, the
// thread passes the turn at tile m - 2 and reads the word of tile m. It waits for the turn at m
// only before the next barrier.
template <typename C>
class Turns {
 public:
  __device__ __forceinline__ Turns(const Args& args, uint32_t shared)
      : args_(args), address_(shared + C::turns_offset) {}

  // Called by all threads, before any other function of this class.
  __device__ __forceinline__ void draw() const {
    if (threadIdx.x == 0) {
      uint32_t n = blockIdx.x;
      if (args_.turns != nullptr) {  // else there are no rows, and no counter
        n = atomicAdd(args_.turns - 1, 1u);
        if (n == gridDim.x - 1) args_.turns[-1] = 0;
      }
      const DrawnTile drawn =
          drawn_tile(static_cast<int>(n), args_.mixed, args_.mixed_tiles, args_.batch_kv_heads,
                     args_.key_tiles, args_.shortest_first);
      shared_store(address_, drawn.head / args_.kv_heads);
      shared_store(address_ + 4, drawn.head % args_.kv_heads);
      shared_store(address_ + 8, drawn.index);
      shared_store(address_ + 12, static_cast<int>(drawn.rises));
      shared_store(address_ + 16,
                   first_row_of(args_, (int64_t{drawn.index} + (1 << args_.log2_sums)) *
                                           C::block_n) / 64);
      shared_store(address_ + 20, args_.causal ? 0
                                                 : first_query_tile(drawn.head, args_.mixed.divisor,
                                                                    args_.row_tiles));
      shared_store(address_ + 24,
                   (sum_of_key_tile(drawn.index, args_.log2_sums) * args_.batch_kv_heads +
                    drawn.head) / args_.kv_heads);
      shared_store(address_ + 28, place_in_sum(drawn.index, args_.log2_sums));
      for (int stage = 0; stage < 2; ++stage) {
        shared_store(slot(stage), -1);
        shared_store(slot(stage) + left_at, 0);
        shared_store(slot(stage) + awaited_at, 0);
      }
    }
    __syncthreads();
  }
  __device__ __forceinline__ int batch() const { return shared_load(address_); }
  __device__ __forceinline__ int kv_head() const { return shared_load(address_ + 4); }
  __device__ __forceinline__ int key0() const { return index() * C::block_n; }
  // True: the block goes from the last query tile to the first.
  __device__ __forceinline__ bool descends() const { return args_.causal && rises(); }
  // Without a mask: the query tile that the block begins with.
  __device__ __forceinline__ int first() const { return shared_load(address_ + 20); }

  // Called by all threads, during the products of a query tile, the m-th of its head.
  __device__ __forceinline__ void take_and_pass(int stage, int head, int m) const {
    if (!takes_turns()) return;
    const int tile = (batch_of_sums() * args_.heads + head) * args_.row_tiles + m / C::tile_parts;
    const int part = m % C::tile_parts;
    const uint32_t slot = this->slot(stage);
    const uint32_t found = load_relaxed(args_.turns + tile);
    // Orders the additions of two tiles ago before the turn is passed, and the word, if it has
    // arrived, before this tile's additions.
    fence_threads();
    const uint32_t left = shared_load(slot + left_at);
    if (left != 0) store_relaxed(args_.turns + shared_load(slot) / C::tile_parts, left);
    const KeyTileTurn turn{place(), shared_load(address_ + 16), rises()};
    const bool waits = part == 0 && turn.waits(m / C::tile_parts);
    const bool is_first =
        part == 0 ? !waits && found == no_sums : this->is_first(stage ^ 1);
    const bool passes = part == C::tile_parts - 1;
    shared_store(slot, tile * C::tile_parts + part);
    shared_store(slot + left_at,
                 passes ? static_cast<int>(turn.left_at(m / C::tile_parts)) : 0);
    shared_store(slot + awaited_at,
                 waits && found != turn.awaited() ? static_cast<int>(turn.awaited()) : 0);
    shared_store(slot + first_at, static_cast<int>(is_first));
  }
  // Called by all threads, before the barrier after which the block adds to the tile.
  __device__ __forceinline__ void await(int stage) const {
    if (!takes_turns()) return;
    const uint32_t awaited = shared_load(slot(stage) + awaited_at);
    if (awaited == 0) return;
    const uint32_t* const word = args_.turns + shared_load(slot(stage)) / C::tile_parts;
    while (load_acquire(word) != awaited) {
    }
  }
  // Called by all threads, after the barrier at which the block's additions are complete.
  __device__ __forceinline__ void pass(int stage) const {
    if (!takes_turns()) return;
    const uint32_t left = shared_load(slot(stage) + left_at);
    if (left != 0) store_release(args_.turns + shared_load(slot(stage)) / C::tile_parts, left);
  }
  // The index of the query tile of block_m rows, counted over all heads; -1: none so far.
  __device__ __forceinline__ int rows(int stage) const { return shared_load(slot(stage)); }
  // True if there are no sums of the tile yet.
  __device__ __forceinline__ bool is_first(int stage) const {
    return shared_load(slot(stage) + first_at) != 0;
  }

 private:
  // True in the first thread. Computed again at each use, since there are no registers to keep it
  // in.
  static __device__ __forceinline__ bool takes_turns() {
#if __CUDA_ARCH__ >= 900
    return threadIdx.x == 0;
#else
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread == 0;
#endif
  }
  static constexpr int left_at = 4, awaited_at = 8, first_at = 12;
  __device__ __forceinline__ uint32_t slot(int stage) const { return address_ + 32 + 16 * stage; }
  __device__ __forceinline__ int index() const { return shared_load(address_ + 8); }
  // The batch of the sum of dQ that the key tile adds to, counted over all sums; and the index of
  // the key tile in that sum.
  __device__ __forceinline__ int batch_of_sums() const { return shared_load(address_ + 24); }
  __device__ __forceinline__ int place() const { return shared_load(address_ + 28); }
  __device__ __forceinline__ bool rises() const { return shared_load(address_ + 12) != 0; }

  const Args& args_;
  const uint32_t address_;
};

}  // namespace baracuda::sm80::backward
