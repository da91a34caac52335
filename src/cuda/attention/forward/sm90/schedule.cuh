// What the sm90a kernel is launched with, and which tiles a block works through.
#pragma once

#include <cuda.h>

#include "attention/count_rows.cuh"
#include "attention/forward/sm90/tile_walk.h"
#include "attention/forward/step_args.cuh"

namespace baracuda::sm90 {

// Rows that see no key are taken care of by so many.
constexpr int keyless_unit = 64;

struct HopperArgs {
  CUtensorMap q, k, v;
  StepArgs step;
  TileOrder order;
  Divisor heads, group;  // those of step, to divide by
  Divisor key_stride;  // of 0 where only the device knows it
  Divisor keyless_units;  // of a head, of 64 rows before first_row: to be begun or finished too
  bool leaves_processors;  // to something beside it, whose end the next step waits for, too
};

// Number of keys that a row sees; rows past the end see what the last one does.
__device__ __forceinline__ int row_limit(const HopperArgs& all, int64_t row) {
  const StepArgs& args = all.step;
  const int keys = static_cast<int>(args.key_len);
  if (!args.causal) return keys;
  if (row >= args.query_len) row = args.query_len - 1;
  const baracuda_position_map& q_map = args.device_maps ? args.device_maps[0] : args.q_map;
  const baracuda_position_map& k_map = args.device_maps ? args.device_maps[1] : args.k_map;
  const int64_t pos = position(q_map, row);
  const int split = static_cast<int>(k_map.split < keys ? k_map.split : keys);
  int seen = 0;
#pragma unroll 1
  for (int part = 0; part < 2; ++part)
    seen += count_at_or_before(part == 0 ? k_map.head : k_map.tail, k_map.stride, all.key_stride,
                               part == 0 ? split : keys - split, pos);
  return seen;
}

struct Tile {
  int batch_head;
  int row0;  // first query row

  __device__ __forceinline__ int batch(const HopperArgs& args) const {
    return args.heads.quotient(batch_head);
  }
  __device__ __forceinline__ int head(const HopperArgs& args) const {
    return args.heads.remainder(batch_head);
  }
  __device__ __forceinline__ int kv_head(const HopperArgs& args) const {
    return args.group.quotient(head(args));
  }
};

// How many heads' tiles are mixed to be walked longest first; 0: one head after the other.
// Without a mask there is no longest. Short sequences are bound by memory: K and V should be read
// once, by blocks that work on a head together, and with many rounds the lengths even out anyway.
// The steps of a ring even out among themselves what a section leaves uneven: there, the fewest
// heads that fill rounds of the grid, for the sake of L2.
inline int64_t choose_section(const StepArgs& args, int element_bytes, int64_t grid) {
  if (!args.causal || (args.query_tiles <= 8 && args.blocks >= 8 * grid)) return 0;
  if (!args.follows) {
    const int64_t pair_bytes = 2 * args.key_len * args.head_dim * element_bytes;
    const int64_t section = fitting_section(args.batch_heads / args.group, args.group,
                                            args.query_tiles, pair_bytes, grid);
    if (section > 0) return section;
  }
  const int64_t heads = longest_first_section(args, element_bytes);
  if (!args.follows) return heads;
  for (int64_t fewer = 1; fewer < heads; ++fewer) {
    const int64_t tiles = fewer * args.query_tiles, rounds = (tiles + grid - 1) / grid;
    if (args.batch_heads % fewer == 0 && 20 * tiles >= 19 * rounds * grid) return fewer;
  }
  return heads;
}

// What is to stay in L2: Q and the state, which the next step of a ring comes back to. K and V leave
// first where they may: blocks that work on a head together read them at about the same time; under
// a mask, longest tiles first, they do not.
template <bool First, bool Last>
__device__ __forceinline__ bool keeps_keys(const StepArgs& args) {
  return (First && Last) || args.section > 0;
}

}  // namespace baracuda::sm90
