// The words of each query tile in the scratch, and the counter of key tiles before them. The words
// order the additions to dQ (order.h), or let the first addition store (sm90/first_stores.cuh).
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace baracuda {

constexpr uint32_t no_sums = 0;  // nothing was added yet, so the next addition must store
constexpr uint32_t has_sums = 1, being_stored = 2;  // only in steps that are not ordered

// Resets the words of one tile. The words of all tiles are an array [word][sum of dQ][tile]. words:
// the number of a tile's words, over all of its sums.
BARACUDA_HD void begin_turns(uint32_t* turns, int64_t tile, int64_t tiles, int words) {
  for (int i = 0; i < words; ++i) turns[i * tiles + tile] = no_sums;
  if (tile == 0) turns[-1] = 0;
}

}  // namespace baracuda
