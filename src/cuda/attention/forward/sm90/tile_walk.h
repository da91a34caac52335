// The order in which the sm90a kernel works on query tiles, and which of them a block takes.
#pragma once

#include <stdint.h>

#include "common/divisor.h"
#include "common/host_device.h"

namespace baracuda::sm90 {

// Sections of heads follow one another. A section's tiles are walked in rounds of one tile a block.
struct TileOrder {
  int heads;        // of all batches
  bool mixes;       // a section's heads, longest tiles first; else one head after the other
  bool backwards;   // direction of the first round
  int turn;         // see TileWalk
  Divisor section;  // heads
  Divisor rounds;   // of a section
  Divisor tiles;    // query tiles of a head
  Divisor grid;     // blocks
};

// section: heads that are mixed, or 0.
inline TileOrder make_tile_order(int64_t heads, int64_t tiles, int64_t section, int64_t grid) {
  const int64_t size = section > 0 ? section : heads;
  const int64_t in_section = size * tiles, rounds = (in_section + grid - 1) / grid;
  const int64_t sections = (heads + size - 1) / size;
  TileOrder order{};
  order.heads = static_cast<int>(heads);
  order.mixes = section > 0;
  // Where heads are not mixed the last round, which may be short, runs forwards: the first blocks
  // have a tile more, and they are the first to get a multiprocessor that the step before has left.
  order.backwards = !order.mixes && rounds % 2 == 0;
  order.turn = sections * grid >> 31 == 0 ? static_cast<int>(in_section % grid) : 0;
  order.section = make_divisor(size);
  order.rounds = make_divisor(rounds);
  order.tiles = make_divisor(tiles);
  order.grid = make_divisor(grid);
  return order;
}

// A step, as far as its sections depend on it.
struct StepShape {
  int64_t heads;       // of all batches
  int64_t group;       // query heads of a key head
  int64_t pair_bytes;  // of K and V of a key head
};

// As many heads as keep K and V in L2 from one tile to the next, and no more: all blocks are at their
// tiles, so K and V come from memory once. Equal sections where they can be: a smaller one at the
// end leaves blocks with nothing to do.
inline int64_t fitting_section(const StepShape& step) {
  constexpr int64_t l2_share = int64_t{32} << 20;  // of 40 MB or more
  const int64_t fitting = step.pair_bytes > 0 ? l2_share / step.pair_bytes : step.heads;
  const int64_t pairs = fitting > 1 ? fitting : 1;
  if (pairs * step.group >= step.heads) return step.heads;
  int64_t power = 1;
  while (2 * power <= pairs) power *= 2;
  if (step.heads % (power * step.group) == 0) return power * step.group;
  const int64_t key_heads = step.heads / step.group;
  const int64_t sections = (key_heads + pairs - 1) / pairs;
  return (key_heads + sections - 1) / sections * step.group;
}

// The grid stays resident and every block walks a fixed list of tiles. The direction of its rounds
// alternates: under a mask, what a block gains in one round it loses in the next, so all finish within
// about a tile of each other without a shared counter. Where a section's last round is short, other
// blocks go without a tile in it than in the section before: after rounds of both directions all
// places are turned by so many.
class TileWalk {
 public:
  // rank: of a head's tiles, from the last one on.
  BARACUDA_HD bool next(const TileOrder& order, int block, int& batch_head, int& rank) {
    const int section = static_cast<int>(order.section.divisor);
    const int rounds = static_cast<int>(order.rounds.divisor);
    const int grid = static_cast<int>(order.grid.divisor);
    const int tiles = static_cast<int>(order.tiles.divisor);
    for (;;) {
      const int at = order.rounds.quotient(round_), first_head = at * section;
      if (first_head >= order.heads) return false;
      const int left = order.heads - first_head, heads = section < left ? section : left;
      const int turns = rounds % 2 == 0 ? at : at / 2;
      const int place = order.grid.remainder(block + turns * order.turn);
      const bool backwards = (round_ % 2 != 0) != order.backwards;
      const int index =
          (round_ - at * rounds) * grid + (backwards ? grid - 1 - place : place);
      ++round_;
      if (index >= heads * tiles) continue;
      if (!order.mixes) {
        batch_head = order.tiles.quotient(index);
        rank = index - batch_head * tiles;
      } else {
        rank = heads == section ? order.section.quotient(index) : index / heads;
        batch_head = first_head + index - rank * heads;
      }
      return true;
    }
  }

 private:
  int round_ = 0;  // of all sections
};

}  // namespace baracuda::sm90
