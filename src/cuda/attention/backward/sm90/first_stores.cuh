// The first addition to a tile of dQ, in any order: it stores, so that there need be no zeros.
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

// A word is no_sums, then somebody stores, then has_sums for good. Who waits, waits for a copy that is
// under way: no block waits for another's turn, whichever are resident. found: the word, read at any time
// before. True: the caller stores, and tells; else it adds.
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
// The store has landed.
__device__ __forceinline__ void publish(uint32_t* word) {
  fence_copies();
  store_release(word, has_sums);
}

}  // namespace baracuda::sm90::backward
