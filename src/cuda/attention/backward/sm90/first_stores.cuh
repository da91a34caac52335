// Unordered additions to dQ whose first addition to a tile stores, so that dQ need not be zeroed.
#pragma once

#include "attention/backward/sm90/config.h"
#include "attention/backward/turn_words.h"
#include "common/global_access.cuh"

namespace baracuda::sm90::backward {

template <typename C>
constexpr bool stores_first = false;
template <typename Element, int HeadDim, int KStages, int DsStages, bool Pair, bool Ordered>
constexpr bool stores_first<Config<Element, HeadDim, KStages, DsStages, Pair, Ordered, true>> =
    true;

// A tile's word is no_sums, then being_stored, then has_sums. A block waits only for a store that
// is in flight, so any number of blocks may be resident. found: the word, read at any earlier time.
// True: the caller must store and then call publish(). False: it must add.
__device__ __forceinline__ bool claim(uint32_t* word, uint32_t found) {
  bool is_first = false;
  if (found != has_sums) {
    is_first = atomicCAS(word, no_sums, being_stored) == no_sums;
    if (!is_first)
      while (load_acquire(word) != has_sums) {
      }
  }
  fence_copies();
  return is_first;
}
// Signals that the store is complete.
__device__ __forceinline__ void publish(uint32_t* word) {
  fence_copies();
  store_release(word, has_sums);
}

}  // namespace baracuda::sm90::backward
