// The order of query tiles of sm90a's forward (attention/forward/sm90/tile_scheduler.h), compiled
// from its source, for test_tile_scheduler.py.
#include "attention/forward/sm90/tile_scheduler.h"

using namespace baracuda;
using namespace baracuda::sm90;

extern "C" int64_t walk_section(int64_t key_heads, int64_t group, int64_t query_tiles,
                                int64_t pair_bytes, int64_t grid) {
  return fitting_section(key_heads, group, query_tiles, pair_bytes, grid);
}

// The tiles of one block, in order: their heads and ranks. Returns their number, -1 if more than
// `room`.
extern "C" int walk_block(int64_t heads, int64_t tiles, int64_t section, int64_t grid, int block,
                          int room, int* out_heads, int* out_ranks) {
  const TileOrder order = make_tile_order(heads, tiles, section, grid);
  TileScheduler walk;
  int n = 0, head, rank;
  for (; walk.next(order, block, head, rank); ++n) {
    if (n == room) return -1;
    out_heads[n] = head;
    out_ranks[n] = rank;
  }
  return n;
}
