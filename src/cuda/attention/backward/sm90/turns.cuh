// The fixed order of an ordered step's additions to dQ.
//
// Blocks draw key tiles from a counter. Key tiles of a head are drawn in the order in which they add
// to each query tile that sees them, and one waits only for the one before. So every wait is for a
// key tile that a block at work has drawn before its own: the step ends with any number of blocks
// resident, in any order, and leaves the counter at zero.
#pragma once

#include "attention/backward/sm90/schedule.cuh"
#include "common/global_access.cuh"

namespace baracuda::sm90::backward {

// A query tile's word. The counter is the word before the first.
enum Turn : uint32_t {
  no_turn_yet = 0,   // there are no sums
  nobodys_turn = 1,  // no step is at them
  after_key_tile = 2  // its addition has landed: plus its index
};

__device__ __forceinline__ void begin_turns(uint32_t* turns, int64_t tile) {
  turns[tile] = no_turn_yet;
  if (tile == 0) turns[-1] = 0;
}
__device__ __forceinline__ bool has_turns(const uint32_t* turns, int64_t tile) {
  return turns[tile] != no_turn_yet;
}

// Of one key tile. Later key tiles are seen by fewer query tiles, the last ones.
class TileTurns {
 public:
  // next_begin: the first query tile that sees the next key tile. descends: over query tiles.
  __device__ __forceinline__ TileTurns(const Args& args, int index, int next_begin, bool descends)
      : index_(index), next_begin_(next_begin), rises_(!args.causal || descends) {}

  // Waits for the turn. True: there are no sums yet.
  __device__ __forceinline__ bool await(const uint32_t* word, int m) const {
    uint32_t found = load_acquire(word);
    if (rises_ ? index_ > 0 : m >= next_begin_) {
      const uint32_t wanted = after_key_tile + index_ + (rises_ ? -1 : 1);
      while (found != wanted) found = load_acquire(word);
    }
    fence_copies();
    return found == no_turn_yet;
  }
  // Once the addition has landed.
  __device__ __forceinline__ void pass_on(uint32_t* word, int m) const {
    const bool is_last = rises_ ? m < next_begin_ : index_ == 0;
    fence_copies();
    store_release(word, is_last ? nobodys_turn : after_key_tile + index_);
  }

 private:
  const int index_, next_begin_;
  const bool rises_;  // the index of who adds
};

// Without a mask, and in the last section of heads, the first key tiles come first: the longest under
// a mask, so that blocks end together. A block then goes down from the last query tile, which all
// key tiles have. In other sections the shortest come first and go up: the next, which begins
// two query tiles before, is behind by itself.
class TicketWalk {
 public:
  __device__ __forceinline__ bool next(const Args& args, KeyTile& tile) {
    const int n = draw(args);
    if (n >= args.batch_kv_heads * args.key_tiles) return false;
    const int section = static_cast<int>(args.section.divisor);
    const int at = args.section_tiles.quotient(n);
    const int first_head = at * section;
    const int left = args.batch_kv_heads - first_head;
    const int heads = section < left ? section : left;
    const int in_section = n - at * static_cast<int>(args.section_tiles.divisor);
    const int place = heads == section ? args.section.quotient(in_section) : in_section / heads;
    const bool rises = !args.causal || left <= section;
    const int head = first_head + in_section - place * heads;
    tile.index = rises ? place : args.key_tiles - 1 - place;
    tile.descends = args.causal && rises;
    tile.batch = args.kv_heads.quotient(head);
    tile.kv_head = head - tile.batch * static_cast<int>(args.kv_heads.divisor);
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
