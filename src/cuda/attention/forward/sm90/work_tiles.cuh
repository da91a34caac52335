// Arguments of the sm90a kernel, and the query tiles that a block processes.
#pragma once

#include <cuda.h>

#include "attention/count_rows.cuh"
#include "attention/forward/sm90/tile_scheduler.h"
#include "attention/forward/step_args.cuh"
#include "common/divisor.h"

namespace baracuda::sm90 {

// Fully masked rows are processed in units of this many rows.
constexpr int masked_row_unit = 64;

struct HopperArgs {
  CUtensorMap q, k, v, y;
  StepArgs step;
  Divisor query_tiles, heads, group, section;  // extents of the step, for fast division
  // Divides by k_map.stride. Its divisor is 0 if the host does not know the stride (device_maps),
  // or if the stride is 2^31 or more.
  Divisor key_stride;
  // Divides by the number of units of fully masked rows in a head: first_row / masked_row_unit.
  Divisor masked_row_units;
  // The step leaves multiprocessors free for the kernel of NCCL by which the rank sends or receives
  // during the step. If the rank receives by NCCL, the stream waits for an event before the next
  // step, so the next step does not overlap this one (overlaps_previous(), launch.cuh). A rank may
  // also send by NCCL and receive by peer; then the steps can overlap.
  bool leaves_processors;
  bool maps_y;      // the map `y` is set: TMA stores the output (output_stage.cuh)
  bool backwards;   // as TileOrder::backwards
  TileOrder order;  // for FirstStepScheduler; LaterStepScheduler uses the fields above
};

// The number of keys that a row sees. For a row past the end: the number of keys that the last row
// sees.
__device__ __forceinline__ int row_limit(const HopperArgs& all, uint32_t row) {
  const StepArgs& args = all.step;
  const int keys = static_cast<int>(args.key_len);
  if (!args.borders_vary) return keys;
  const auto rows = static_cast<uint32_t>(args.query_len);
  if (row >= rows) row = rows - 1;
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

// The number of heads in a section. The tiles of a section are interleaved, and the tiles that see
// the most keys run first. 0: head by head, in two cases. The first is a step without a mask, where
// all tiles see equally many keys. The second is a step with at most 8 query tiles in a head and at
// least 8 waves; memory bandwidth limits such steps. Head by head, the blocks of a head read its K
// and V at the same time, so that these come from memory once. Over 8 waves the lengths of tiles
// average out.
//
// A step that begins a state takes a section that ends evenly, if there is one. A step with FOLLOWS
// takes the smallest section of h heads for which two conditions hold: h divides the number of
// heads, and at least 95 % of the blocks of the section's waves have a tile (in the last wave some
// blocks may have none). A small section keeps K and V in L2; see
// docs/kernel-log/forward-sm90a-steps.md, "Few heads mixed in the steps of a causal ring". In all
// other cases longest_first_section() chooses.
inline int64_t choose_section(const StepArgs& args, int element_bytes, int64_t grid) {
  if (!args.borders_vary || (args.query_tiles <= 8 && args.blocks >= 8 * grid)) return 0;
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

// True if K and V should stay in L2. They should in whole calls, which have no state that L2 could
// keep instead. They also should if the tiles of several heads are interleaved, because the blocks
// of a head then read its K and V at different times. In all other steps K and V are evicted first,
// so that Q and the state stay for the next step of the ring.
template <bool First, bool Last>
__device__ __forceinline__ bool keeps_keys(const StepArgs& args) {
  return (First && Last) || args.section > 0;
}

// Finds the tiles of a step that begins a state. Whole calls are such steps, too. The blocks of a
// cluster get the same tile.
template <int Cluster>
class FirstStepScheduler {
 public:
  __device__ __forceinline__ explicit FirstStepScheduler(const HopperArgs&) {}

  __device__ __forceinline__ bool next(const HopperArgs& all, int block_m, Tile& tile) {
    int rank;
    if (!scheduler_.next(all.order, static_cast<int>(blockIdx.x / Cluster), tile.batch_head, rank))
      return false;
    const int tiles_per_head = static_cast<int>(all.order.tiles.divisor);
    tile.row0 = static_cast<int>(all.step.first_row) + (tiles_per_head - 1 - rank) * block_m;
    return true;
  }

 private:
  TileScheduler scheduler_;
};

// Finds the tiles of a step that continues a state. The blocks of a cluster get the same tile. Block
// indices do not rotate from section to section as in TileScheduler. With TileScheduler, striped
// rings took 1 % longer: ptxas generated other code for the consumers.
template <int Cluster>
class LaterStepScheduler {
 public:
  __device__ __forceinline__ explicit LaterStepScheduler(const HopperArgs& all)
      : backwards_(all.backwards) {}

  __device__ __forceinline__ bool next(const HopperArgs& all, int block_m, Tile& tile) {
    const StepArgs& args = all.step;
    const int grid = static_cast<int>(gridDim.x / Cluster);
    const int block = static_cast<int>(blockIdx.x / Cluster);
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
  int done_ = 0;  // tiles in earlier waves of the section
  bool backwards_;
};

}  // namespace baracuda::sm90
