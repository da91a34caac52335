// Arguments of the forward kernels, and the tile that a block works on.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "attention/problem.h"
#include "attention/forward/step_mask.h"
#include "attention/positions.h"

namespace baracuda {

struct StepArgs {
  const void* q;
  const void* k;
  const void* v;
  void* y;
  void* lse;
  void* state;
  baracuda_strides q_strides, k_strides, v_strides, y_strides;
  baracuda_position_map q_map, k_map;
  const baracuda_position_map* device_maps;
  int64_t heads;
  int64_t group;  // query heads per key head
  int64_t batch_heads;
  int64_t query_len;
  int64_t key_len;
  int64_t query_tiles;
  int64_t blocks;
  int64_t section;  // number of heads that run side by side, see block_work()
  double scale;
  float scale_log2;  // scale * log2(e)
  int32_t head_dim;
  bool first;
  bool last;
  bool borders_vary;  // rows may see different keys, see problem.h
  bool lse_is_f32;
  bool follows;
  int64_t first_row;      // earlier rows see no key and are in no query tile
  int64_t masked_row_tiles;  // tiles of such rows in a head; the last blocks take them
};

// The number of heads in a section, whose tiles run longest first. Their K and V must fit an L2 of
// 40 MB or more, so that several blocks read the same K and V at about the same time; but there are
// at least 32 heads. Sections have equal sizes, since each ends with an uneven round of tiles.
inline int64_t longest_first_section(const StepArgs& a, int element_bytes) {
  constexpr int64_t l2_share = int64_t{32} << 20;
  constexpr int64_t heads_side_by_side = 32;
  const int64_t pair_bytes = 2 * a.key_len * a.head_dim * element_bytes;
  int64_t section = pair_bytes > 0 ? a.group * (l2_share / pair_bytes) : a.batch_heads;
  if (section < heads_side_by_side) section = heads_side_by_side;
  const int64_t sections = (a.batch_heads + section - 1) / section;
  return sections > 1 ? (a.batch_heads + sections - 1) / sections : a.batch_heads;
}

inline StepArgs make_step_args(const StepParams& p, int block_m, int element_bytes) {
  StepArgs a{};
  a.q = p.q;
  a.k = p.k;
  a.v = p.v;
  a.y = p.y;
  a.lse = p.lse;
  a.state = p.state;
  a.q_strides = p.q_strides;
  a.k_strides = p.k_strides;
  a.v_strides = p.v_strides;
  a.y_strides = p.y_strides;
  a.q_map = p.q_map;
  a.k_map = p.k_map;
  a.device_maps = p.device_maps;
  a.heads = p.heads;
  a.group = p.heads / p.kv_heads;
  a.batch_heads = p.batch * p.heads;
  a.query_len = p.query_len;
  a.key_len = p.key_len;
  a.query_tiles = (p.query_len + block_m - 1) / block_m;
  a.blocks = a.batch_heads * a.query_tiles;
  a.scale = p.scale;
  a.scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  a.head_dim = static_cast<int32_t>(p.head_dim);
  a.first = (p.flags & BARACUDA_STEP_FIRST) != 0;
  a.last = (p.flags & BARACUDA_STEP_LAST) != 0;
  a.borders_vary = borders_may_vary(p);
  a.follows = (p.flags & BARACUDA_STEP_FOLLOWS) != 0;
  a.lse_is_f32 = p.lse_element == BARACUDA_F32;
  a.section = a.borders_vary ? longest_first_section(a, element_bytes) : 1;
  return a;
}

// Turns a causal step without a diagonal into a step without a mask, on the keys that are seen and
// on the rows from the first one that sees keys, if that is a multiple of row_unit.
inline void drop_mask(const StepMask& mask, int block_m, int64_t row_unit, StepArgs& a) {
  if (!mask.same_keys || mask.first_row % row_unit != 0) return;
  a.borders_vary = false;
  a.key_len = mask.keys;
  a.first_row = mask.first_row;
  a.query_tiles = (a.query_len - mask.first_row + block_m - 1) / block_m;
  a.blocks = a.batch_heads * a.query_tiles;
  a.section = 1;
}

// The same for kernels with one block for each tile. In steps that begin or end a ring, rows
// without keys have their own tiles. Other steps skip them.
inline void drop_mask_of_tiles(const StepParams& p, int block_m, StepArgs& a) {
  const bool leaves_rows = !a.first && !a.last;
  drop_mask(step_mask(p), block_m, leaves_rows ? 1 : block_m, a);
  if (leaves_rows) return;
  a.masked_row_tiles = a.first_row / block_m;
  a.blocks += a.batch_heads * a.masked_row_tiles;
}

// One block for each work item. y is used only if x cannot hold the number.
inline dim3 step_grid(const StepArgs& a) {
  constexpr int64_t max_x = int64_t{1} << 30;
  const int64_t x = a.blocks < max_x ? a.blocks : max_x;
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>((a.blocks + x - 1) / x));
}

#if defined(__CUDACC__)

// ceil(a / b) without overflow near the end of the type.
template <typename T>
__device__ __forceinline__ T ceil_div(T a, T b) {
  return a / b + (a % b != 0);
}

struct BlockWork {
  int64_t batch;
  int64_t head;
  int64_t kv_head;
  int64_t row0;        // first query row of the tile
  int64_t state_row0;  // the same row, counted over all B*H*Q rows
};

__device__ __forceinline__ void set_work(const StepArgs& a, int64_t batch_head, int64_t row0,
                                         BlockWork& work) {
  work.batch = batch_head / a.heads;
  work.head = batch_head % a.heads;
  work.kv_head = work.head / a.group;
  work.row0 = row0;
  work.state_row0 = batch_head * a.query_len + row0;
}

// Sections of heads follow one another; within one, tiles run from the last (under a causal mask
// the longest) to the first.
__device__ __forceinline__ bool block_work(const StepArgs& a, int block_m, BlockWork& work) {
  const int64_t index = blockIdx.x + static_cast<int64_t>(gridDim.x) * blockIdx.y;
  if (index >= a.blocks) return false;
  const int64_t masked_index = index - a.batch_heads * a.query_tiles;
  if (masked_index >= 0) {
    const int64_t batch_head = masked_index / a.masked_row_tiles;
    set_work(a, batch_head, masked_index % a.masked_row_tiles * block_m, work);
    return true;
  }
  const int64_t section_blocks = a.section * a.query_tiles;
  const int64_t first_head = index / section_blocks * a.section;
  const int64_t rest = index % section_blocks;
  const int64_t left = a.batch_heads - first_head;
  const int64_t heads_here = a.section < left ? a.section : left;
  const int64_t row0 = a.first_row + (a.query_tiles - 1 - rest / heads_here) * block_m;
  set_work(a, first_head + rest % heads_here, row0, work);
  return true;
}

// Keeps a block's work in shared memory, since the main loop needs every register. Volatile, since
// the compiler would otherwise keep it in registers.
__device__ __forceinline__ void park(volatile BlockWork* parked, const BlockWork& work) {
  parked->batch = work.batch;
  parked->head = work.head;
  parked->kv_head = work.kv_head;
  parked->row0 = work.row0;
  parked->state_row0 = work.state_row0;
}

__device__ __forceinline__ BlockWork unpark(const volatile BlockWork* parked) {
  return BlockWork{parked->batch, parked->head, parked->kv_head, parked->row0,
                   parked->state_row0};
}

// Writes the number of keys that each of the tile's rows sees to limits[0 .. rows). Rows past the
// end repeat the last one, so the first and last entries bound the tile.
template <typename Limit>
__device__ __forceinline__ void write_row_limits(const StepArgs& a, int64_t row0, int rows,
                                                 Limit* limits) {
  for (int i = threadIdx.x; i < rows; i += blockDim.x) {
    int64_t limit = row0 < a.first_row ? 0 : a.key_len;
    if (a.borders_vary) {
      const int64_t row = row0 + i < a.query_len ? row0 + i : a.query_len - 1;
      const baracuda_position_map q_map = a.device_maps ? a.device_maps[0] : a.q_map;
      const baracuda_position_map k_map = a.device_maps ? a.device_maps[1] : a.k_map;
      limit = visible_keys(k_map, a.key_len, position(q_map, row));
    }
    limits[i] = static_cast<Limit>(limit);
  }
}

#endif  // __CUDACC__

}  // namespace baracuda
