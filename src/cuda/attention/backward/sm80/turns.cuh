// Ordered steps on sm80: the key tile that a block has taken, and its turns. A turn is the time at
// which the block may add to dQ of a query tile (see backward/order.h).
#pragma once

#include "attention/backward/order.h"
#include "attention/backward/sm80/args.cuh"
#include "common/global_access.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm80::backward {

// Thread 0 takes the turns for its block. It keeps what the block must know about them in two slots
// in shared memory, which query tiles use alternately.
//
// A block computes dS of its i-th query tile in iteration i, and dQ from it in iteration i + 1. At
// the barrier that begins iteration i + 2, all threads have added their part of that dQ. So in
// iteration i, thread 0 passes on the turn of tile i - 2, reads the turn word of tile i (order.h),
// and overwrites the slot of tile i - 2 with that of tile i. It waits for the turn of tile i only
// before the barrier that begins iteration i + 1.
template <typename C>
class Turns {
 public:
  __device__ __forceinline__ Turns(const Args& args, uint32_t shared)
      : args_(args), address_(shared + C::turns_offset) {}

  // Takes the block's key tile. All threads call this before any other function of this class.
  __device__ __forceinline__ void draw() const {
    if (threadIdx.x == 0) {
      uint32_t n = blockIdx.x;
      if (args_.turns != nullptr) {  // without query rows there is no counter
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
      shared_store(address_ + 20, args_.borders_vary ? 0
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
  // True if the block takes its query tiles from the last to the first.
  __device__ __forceinline__ bool descends() const { return args_.borders_vary && rises(); }
  // The query tile with which the block begins if there is no mask; 0 under a mask.
  __device__ __forceinline__ int first() const { return shared_load(address_ + 20); }

  // All threads call this once in the iteration of each query tile. m: the index of the query tile
  // in its head, in tiles of block_m rows.
  __device__ __forceinline__ void take_and_pass(int stage, int head, int m) const {
    if (!takes_turns()) return;
    const int tile = (batch_of_sums() * args_.heads + head) * args_.row_tiles + m / C::tile_parts;
    const int part = m % C::tile_parts;
    const uint32_t slot = this->slot(stage);
    const uint32_t found = load_relaxed(args_.turns + tile);
    // The fence is both a release and an acquire. The block's additions to tile i - 2 (see above)
    // come before the store that passes on the turn of that tile. If `found` already equals the
    // awaited word, the additions of the key tile that stored that word come before this block's
    // additions to this query tile.
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
  // Waits for the turn. All threads call this before the barrier after which the block adds to dQ
  // of the tile.
  __device__ __forceinline__ void await(int stage) const {
    if (!takes_turns()) return;
    const uint32_t awaited = shared_load(slot(stage) + awaited_at);
    if (awaited == 0) return;
    const uint32_t* const word = args_.turns + shared_load(slot(stage)) / C::tile_parts;
    while (load_acquire(word) != awaited) {
    }
  }
  // Passes the turn, for the last two tiles of the block. All threads call this after the barrier
  // that completes the block's additions to the tile.
  __device__ __forceinline__ void pass(int stage) const {
    if (!takes_turns()) return;
    const uint32_t left = shared_load(slot(stage) + left_at);
    if (left != 0) store_release(args_.turns + shared_load(slot(stage)) / C::tile_parts, left);
  }
  // The query tile of the slot: its index in tiles of block_m rows, counted over all heads, batches
  // and sums. -1: the slot is still unused.
  __device__ __forceinline__ int rows(int stage) const { return shared_load(slot(stage)); }
  // True if nothing has been added to the tile's sum yet, so that the block stores its dQ.
  __device__ __forceinline__ bool is_first(int stage) const {
    return shared_load(slot(stage) + first_at) != 0;
  }

 private:
  // True in thread 0. Before sm_90 the asm is volatile, so that the compiler computes this at each
  // use: no register is free to keep it.
  static __device__ __forceinline__ bool takes_turns() {
#if __CUDA_ARCH__ >= 900
    return threadIdx.x == 0;
#else
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread == 0;
#endif
  }
  // A slot holds rows() and, at these byte offsets: the word that passes on the turn (0: these
  // block_m rows are not the last of their 64-row tile, so the turn is not passed on yet), the
  // awaited word (0: no wait), and is_first().
  static constexpr int left_at = 4, awaited_at = 8, first_at = 12;
  __device__ __forceinline__ uint32_t slot(int stage) const { return address_ + 32 + 16 * stage; }
  __device__ __forceinline__ int index() const { return shared_load(address_ + 8); }
  // sum * batches + batch: the index of the block's sum and batch in the scratch, whose outer
  // dimensions are [sum][batch].
  __device__ __forceinline__ int batch_of_sums() const { return shared_load(address_ + 24); }
  // The index of the block's key tile among the key tiles of its sum.
  __device__ __forceinline__ int place() const { return shared_load(address_ + 28); }
  __device__ __forceinline__ bool rises() const { return shared_load(address_ + 12) != 0; }

  const Args& args_;
  const uint32_t address_;
};

}  // namespace baracuda::sm80::backward
