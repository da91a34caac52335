// The order in which the sm90a kernel processes query tiles, and the tiles that each block takes.
#pragma once

#include <stdint.h>

#include "common/divisor.h"
#include "common/host_device.h"

namespace baracuda::sm90 {

// Heads are grouped into sections, which run one after the other. The tiles of a section run in
// waves. In a wave each block takes one tile. (In the names below, a wave is called a round. It has
// nothing to do with the rounds of a ring.)
struct TileOrder {
  int heads;        // query heads of all batches
  bool mixes;       // interleave the heads of a section, longest tiles first; else head by head
  bool backwards;   // in the first wave, the last block takes the first tile
  // The number of waves in a section. A last wave that is less than half full is not counted. If
  // the number is odd, the next section begins in the opposite direction.
  int counted;
  int turn;         // the distance by which block indices rotate, see TileScheduler
  Divisor section;  // heads in a section
  Divisor rounds;   // waves in a section
  Divisor tiles;    // query tiles in a head
  Divisor grid;     // blocks in the grid
};

// section: the number of heads to interleave; 0: head by head.
inline TileOrder make_tile_order(int64_t heads, int64_t tiles, int64_t section, int64_t grid) {
  const int64_t size = section > 0 ? section : heads;
  const int64_t in_section = size * tiles, rounds = (in_section + grid - 1) / grid;
  const int64_t sections = (heads + size - 1) / size;
  TileOrder order{};
  order.heads = static_cast<int>(heads);
  order.mixes = section > 0;
  // Without interleaved heads, the direction is chosen so that the last wave runs forwards. If the
  // last wave is not full, the blocks with the lowest indices then take its tiles. These blocks
  // start first when the previous step ends, so they have the most time for one more tile.
  order.backwards = !order.mixes && rounds % 2 == 0;
  order.counted = static_cast<int>((2 * in_section + grid) / (2 * grid));
  order.turn = sections * grid >> 31 == 0 ? static_cast<int>(in_section % grid) : 0;
  order.section = make_divisor(size);
  order.rounds = make_divisor(rounds);
  order.tiles = make_divisor(tiles);
  order.grid = make_divisor(grid);
  return order;
}

// True if all blocks end at about the same time. There are two conditions. First, each block has as
// many forward waves as backward waves: the number of counted waves in a section or the number of
// sections is even. A single section need not fulfil this. Second, tiles / grid, the waves of a
// section, must be in one of these ranges:
//
//   at least 7/8 of a wave, up to 1 + 1/8 waves
//   1 + 7/8 to 2 + 1/4 waves
//   more than 2 + 1/2 waves
//
// tiles: the number of tiles in a section.
inline bool ends_evenly(uint32_t tiles, uint32_t sections, uint32_t grid) {
  const uint32_t rest = tiles % grid, rounds = (2 * tiles + grid) / (2 * grid);
  if (rounds % 2 != 0 && sections % 2 != 0 && sections > 1) return false;
  if (tiles >= 3 * grid) return true;
  if (tiles >= 2 * grid) return 4 * rest <= grid || 2 * rest > grid;
  return 8 * rest >= 7 * grid || (tiles >= grid && 8 * rest <= grid);
}

// The number of query heads in a section whose K and V stay in L2, so that the running blocks read
// them from memory once. These sizes are tried in turn, counted in K/V heads:
//
//   1. the largest power of two with at most 16 MB of K and V, but at least 1
//   2. twice size 1, if that has at most 32 MB
//   3. the size that makes the fewest sections of at most 32 MB each
//
// The first size that divides the number of heads and for which ends_evenly() holds is taken. If
// size 1 or 2 reaches the number of heads, all heads are one section. Returns 0 if no size is
// taken.
//
// pair_bytes: bytes of K and V of a K/V head. grid: the number of blocks.
inline int64_t fitting_section(int64_t key_heads, int64_t group, int64_t query_tiles,
                               int64_t pair_bytes, int64_t grid) {
  constexpr int64_t few = int64_t{16} << 20, most = int64_t{32} << 20;  // L2 has 40 MB or more
  if (key_heads * group * query_tiles >> 30 != 0) return 0;
  const auto serves = [&](int64_t pairs) {
    const auto heads = static_cast<uint32_t>(key_heads), size = static_cast<uint32_t>(pairs);
    return heads % size == 0 &&
           ends_evenly(static_cast<uint32_t>(pairs * group * query_tiles), heads / size,
                       static_cast<uint32_t>(grid));
  };
  int64_t pairs = 1;
  while (2 * pairs * pair_bytes <= few && pairs < key_heads) pairs *= 2;
  if (pairs >= key_heads) return key_heads * group;
  if (serves(pairs)) return pairs * group;
  if (2 * pairs * pair_bytes > most) return 0;
  pairs *= 2;
  if (pairs >= key_heads) return key_heads * group;
  if (serves(pairs)) return pairs * group;
  const int64_t sections = (key_heads * pair_bytes + most - 1) / most;
  pairs = (key_heads + sections - 1) / sections;
  return pairs * pair_bytes <= most && serves(pairs) ? pairs * group : 0;
}

// A static persistent scheduler: the grid stays resident, and every block has a fixed list of
// tiles. Under a mask, a tile is longer the more keys it sees. Waves alternate their direction, so
// that a block with a long tile in one wave gets a short one in the next. All blocks then finish
// within about a tile of each other, without a shared counter. The alternation continues from
// section to section, but does not count a last wave that is less than half full.
//
// A last wave that is not full leaves blocks idle, and these should be different blocks in
// different sections. So block indices rotate by order.turn after each section. If a section has an
// odd number of counted waves, block indices rotate only after every second section, because only
// after two sections has each block had equally many counted waves in both directions.
class TileScheduler {
 public:
  // Finds the block's next tile; false if there is none. rank: the position of the tile in its
  // head, counted from the last tile (not a rank of a ring).
  BARACUDA_HD bool next(const TileOrder& order, int block, int& batch_head, int& rank) {
    const int section = static_cast<int>(order.section.divisor);
    const int rounds = static_cast<int>(order.rounds.divisor);
    const int grid = static_cast<int>(order.grid.divisor);
    const int tiles = static_cast<int>(order.tiles.divisor);
    for (;;) {
      const int at = order.rounds.quotient(round_), first_head = at * section;
      if (first_head >= order.heads) return false;
      const int left = order.heads - first_head, heads = section < left ? section : left;
      const int turns = order.counted % 2 == 0 ? at : at / 2, round = round_ - at * rounds;
      const int place = order.grid.remainder(block + turns * order.turn);
      const bool backwards = ((at * order.counted + round) % 2 != 0) != order.backwards;
      const int index = round * grid + (backwards ? grid - 1 - place : place);
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
  int round_ = 0;  // the next wave, counted over all sections
};

}  // namespace baracuda::sm90
