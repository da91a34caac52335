// Ordered steps on sm80: the key tile that a block has taken, and its turns at the sums of dQ (see
// backward/order.h).
#pragma once

#include "attention/backward/order.h"
#include "attention/backward/sm80/args.cuh"
#include "common/global_access.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm80::backward {

// One thread takes the turns for its block, with its data in shared memory. A query tile uses one
// of two slots, by its stage. dQ of a tile is computed while the block processes the next tile, and
// has been added at the barrier after that. So during the products of a query tile the thread
// passes the turn at the tile two before, and reads the word of this tile. It waits for the turn
// only before the next barrier.
template <typename C>
class Turns {
 public:
  __device__ __forceinline__ Turns(const Args& args, uint32_t shared)
      : args_(args), address_(shared + C::turns_offset) {}

  // By all threads, before anything else here.
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
  // From the last query tile to the first.
  __device__ __forceinline__ bool descends() const { return args_.causal && rises(); }
  // Without a mask: the query tile that the block begins with.
  __device__ __forceinline__ int first() const { return shared_load(address_ + 20); }

  // By all threads, amid the products of a query tile, m of its head.
  __device__ __forceinline__ void take_and_pass(int stage, int head, int m) const {
    if (!takes_turns()) return;
    const int tile = (batch_of_sums() * args_.heads + head) * args_.row_tiles + m / C::tile_parts;
    const int part = m % C::tile_parts;
    const uint32_t slot = this->slot(stage);
    const uint32_t found = load_relaxed(args_.turns + tile);
    // Behind the additions two tiles before, and before those here if the word has come.
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
  // By all threads, before the barrier behind which the block adds to the tile.
  __device__ __forceinline__ void await(int stage) const {
    if (!takes_turns()) return;
    const uint32_t awaited = shared_load(slot(stage) + awaited_at);
    if (awaited == 0) return;
    const uint32_t* const word = args_.turns + shared_load(slot(stage)) / C::tile_parts;
    while (load_acquire(word) != awaited) {
    }
  }
  // By all threads, behind the barrier at which it has added.
  __device__ __forceinline__ void pass(int stage) const {
    if (!takes_turns()) return;
    const uint32_t left = shared_load(slot(stage) + left_at);
    if (left != 0) store_release(args_.turns + shared_load(slot(stage)) / C::tile_parts, left);
  }
  // Which block_m rows of all heads; -1: none so far.
  __device__ __forceinline__ int rows(int stage) const { return shared_load(slot(stage)); }
  // There are no sums yet.
  __device__ __forceinline__ bool is_first(int stage) const {
    return shared_load(slot(stage) + first_at) != 0;
  }

 private:
  // The first thread; made anew where the code needs it, for there are no registers to keep it in.
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
  // Of the sum of dQ that it adds to: the batch, of those of all sums; and its place there.
  __device__ __forceinline__ int batch_of_sums() const { return shared_load(address_ + 24); }
  __device__ __forceinline__ int place() const { return shared_load(address_ + 28); }
  __device__ __forceinline__ bool rises() const { return shared_load(address_ + 12) != 0; }

  const Args& args_;
  const uint32_t address_;
};

}  // namespace baracuda::sm80::backward
