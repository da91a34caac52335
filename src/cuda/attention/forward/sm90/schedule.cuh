// What the sm90a kernel is launched with, and which tiles a block works through.
#pragma once

#include <cuda.h>

#include "attention/count_rows.cuh"
#include "attention/forward/sm90/tile_walk.h"
#include "attention/forward/step_args.cuh"
#include "common/divisor.h"

namespace baracuda::sm90 {

// Rows that see no key are taken care of by so many.
constexpr int keyless_unit = 64;

struct HopperArgs {
  CUtensorMap q, k, v;
  StepArgs step;
  Divisor query_tiles, heads, group, section;  // those of step, to divide by
  Divisor key_stride;  // of 0 where only the device knows it
  Divisor keyless_units;  // of a head, of 64 rows before first_row: to be begun or finished too
  bool leaves_processors;  // to something beside it, whose end the next step waits for, too
  bool backwards;          // direction of the first round of tiles
  TileOrder order;         // what FirstWalk goes by; LaterWalk by the fields above
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
  if (args.first) {
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

// The walk of a step that begins a state, whole calls among them.
class FirstWalk {
 public:
  __device__ __forceinline__ explicit FirstWalk(const HopperArgs&) {}

  __device__ __forceinline__ bool next(const HopperArgs& all, int block_m, Tile& tile) {
    int rank;
    if (!walk_.next(all.order, static_cast<int>(blockIdx.x), tile.batch_head, rank)) return false;
    const int tiles_per_head = static_cast<int>(all.order.tiles.divisor);
    tile.row0 = static_cast<int>(all.step.first_row) + (tiles_per_head - 1 - rank) * block_m;
    return true;
  }

 private:
  TileWalk walk_;
};

// The walk of a step that carries on: the same, but that places do not move on from section to
// section, for steps even out among themselves. With TileWalk striped rings took 1 % longer: ptxas
// gives the consumers other code then.
class LaterWalk {
 public:
  __device__ __forceinline__ explicit LaterWalk(const HopperArgs& all)
      : backwards_(all.backwards) {}

  __device__ __forceinline__ bool next(const HopperArgs& all, int block_m, Tile& tile) {
    const StepArgs& args = all.step;
    const int grid = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int tiles_per_head = static_cast<int>(args.query_tiles);
    const int heads = static_cast<int>(args.batch_heads);
    const bool mixed = args.section > 0;
    const int section = mixed ? static_cast<int>(args.section) : heads;
    while (first_head_ < heads) {
      const int left = heads - first_head_;
      const int heads_here = section < left ? section : left;
      const int tiles_here = heads_here * tiles_per_head;
      if (done_ >= tiles_here) {
        first_head_ += section;
        done_ = 0;
        continue;
      }
      const int index = done_ + (backwards_ ? grid - 1 - block : block);
      done_ += grid;
      backwards_ = !backwards_;
      if (index >= tiles_here) continue;
      int rank;
      if (!mixed) {
        tile.batch_head = all.query_tiles.quotient(index);
        rank = index - tile.batch_head * tiles_per_head;
      } else {
        rank = heads_here == section ? all.section.quotient(index) : index / heads_here;
        tile.batch_head = first_head_ + index - rank * heads_here;
      }
      tile.row0 = static_cast<int>(args.first_row) + (tiles_per_head - 1 - rank) * block_m;
      return true;
    }
    return false;
  }

 private:
  int first_head_ = 0;
  int done_ = 0;  // tiles of the section in earlier rounds
  bool backwards_;
};

}  // namespace baracuda::sm90
