// The first addition to a tile of dQ, in any order: it stores, so that there need be no zeros.
#pragma once

#include "attention/backward/turn_words.h"
#include "common/global_access.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90::backward {

// Of one thread, which has the copy engine store and add. A word is no_sums, then somebody stores, then
// has_sums for good. Who waits, waits for a copy that is under way: no block waits for another's
// turn, whichever are resident.
class FirstStores {
 public:
  // found: the tile's word, read at any time before. True: the caller stores, and tells
  // publish_before(); else it adds.
  __device__ __forceinline__ bool claim(uint32_t* word, uint32_t found) {
    bool is_first = false;
    if (found != has_sums) {
      found = atomicCAS(word, no_sums, being_stored);
      is_first = found == no_sums;
      if (!is_first) {
        publish();  // or two blocks may wait for each other's
        while (load_acquire(word) != has_sums) {
        }
      }
    }
    fence_copies();
    return is_first;
  }
  // Once the copy of the word is committed; null: it was an addition.
  __device__ __forceinline__ void publish_before(uint32_t* word) {
    if (stored_ != nullptr) {
      tma_wait<1>();
      tell();
    }
    stored_ = word;
  }
  __device__ __forceinline__ void publish() {
    if (stored_ == nullptr) return;
    tma_wait<0>();
    tell();
    stored_ = nullptr;
  }

 private:
  __device__ __forceinline__ void tell() const {
    fence_copies();
    store_release(stored_, has_sums);
  }

  uint32_t* stored_ = nullptr;  // its store may not have landed
};

}  // namespace baracuda::sm90::backward
