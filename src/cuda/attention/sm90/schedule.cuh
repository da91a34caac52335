// What the sm90a kernel is launched with, and which tiles a block works through.
#pragma once

#include <cuda.h>

#include "attention/step_args.cuh"

namespace baracuda::sm90 {

struct HopperArgs {
  CUtensorMap q, k, v;
  StepArgs step;
};

// Number of keys that a row sees; rows past the end see what the last one does.
__device__ __forceinline__ int row_limit(const StepArgs& args, int64_t row) {
  if (!args.causal) return static_cast<int>(args.key_len);
  if (row >= args.query_len) row = args.query_len - 1;
  const baracuda_position_map q_map = args.device_maps ? args.device_maps[0] : args.q_map;
  baracuda_position_map k_map = args.device_maps ? args.device_maps[1] : args.k_map;
  const int64_t pos = position(q_map, row);
  if (k_map.stride == 1) {
    k_map.stride = 1;  // now a constant: no 64-bit division
    return static_cast<int>(visible_keys(k_map, args.key_len, pos));
  }
  return static_cast<int>(visible_keys(k_map, args.key_len, pos));
}

// Only what must outlive the main loop, where registers are short; the rest is worked out again.
struct Tile {
  int batch_head;
  int row0;  // first query row

  __device__ __forceinline__ int batch(const StepArgs& args) const {
    return batch_head / static_cast<int>(args.heads);
  }
  __device__ __forceinline__ int head(const StepArgs& args) const {
    return batch_head % static_cast<int>(args.heads);
  }
  __device__ __forceinline__ int kv_head(const StepArgs& args) const {
    return head(args) / static_cast<int>(args.group);
  }
  // The compiler shall not keep what was worked out from the tile before.
  __device__ __forceinline__ void forget() {
    asm volatile("" : "+r"(batch_head), "+r"(row0));
  }
};

// How many heads' tiles are mixed to be walked longest first. As many as keep K and V in L2 need no
// more than that; and few enough that several blocks read the same K and V at about the same time.
// Equal sections, because each has a last round that does not come out even.
inline int64_t choose_section(const StepArgs& args, int element_bytes) {
  constexpr int64_t l2_share = int64_t{32} << 20;
  constexpr int64_t heads_side_by_side = 32;
  const int64_t pair_bytes = 2 * args.key_len * args.head_dim * element_bytes;
  int64_t section = args.group * (pair_bytes > 0 ? l2_share / pair_bytes : args.batch_heads);
  if (section < heads_side_by_side) section = heads_side_by_side;
  const int64_t sections = (args.batch_heads + section - 1) / section;
  return (args.batch_heads + sections - 1) / sections;
}

// The grid stays resident and every block walks a fixed list of tiles. Without a mask all tiles
// take the same time, and those of a head follow one another. With a mask the tiles of a section
// of heads come longest first, in rounds of one
// tile a block whose direction alternates: what a block gains in one round it loses in the next,
// so all finish within about a tile of each other without a shared counter.
class TileWalk {
 public:
  __device__ __forceinline__ bool next(const StepArgs& args, int block_m, Tile& tile) {
    const int grid = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int tiles_per_head = static_cast<int>(args.query_tiles);
    const int heads = static_cast<int>(args.batch_heads);
    const int section = args.causal ? static_cast<int>(args.section) : heads;
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
      if (args.causal) {
        tile.batch_head = first_head_ + index % heads_here;
        tile.row0 = (tiles_per_head - 1 - index / heads_here) * block_m;
      } else {
        tile.batch_head = index / tiles_per_head;
        tile.row0 = index % tiles_per_head * block_m;
      }
      return true;
    }
    return false;
  }

 private:
  int first_head_ = 0;
  int done_ = 0;  // tiles of the section in earlier rounds
  bool backwards_ = false;
};

}  // namespace baracuda::sm90
