// Where additions to dQ take turns, or where the first of them stores: the words that each query tile
// has in the scratch, and the counter of key tiles before the first. order.h has the order;
// sm90/first_stores.cuh does without.
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace baracuda {

constexpr uint32_t no_sums = 0;  // the first to add stores instead
constexpr uint32_t has_sums = 1, being_stored = 2;  // of tiles without turns

// Of one of so many tiles. They have their first words, then their second ones; where tiles have
// several sums, all words of the first sums before those of the second ones.
BARACUDA_HD void begin_turns(uint32_t* turns, int64_t tile, int64_t tiles, int words) {
  for (int i = 0; i < words; ++i) turns[i * tiles + tile] = no_sums;
  if (tile == 0) turns[-1] = 0;
}

}  // namespace baracuda
