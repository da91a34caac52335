// Arguments of the sm80 backward kernel, and the key tile of a block.
#pragma once

#include "attention/backward/first_row.cuh"
#include "baracuda/element.h"
#include "common/divisor.h"

namespace baracuda::sm80::backward {

// The row statistics: an array of lse in base 2 and an array of delta, over the rows of all tiles.
struct RowStatistics {
  static constexpr int row_bytes = 8;
  static double lse_factor(double) { return 1.4426950408889634; }
#if defined(__CUDACC__)
  static __device__ __forceinline__ float hidden_lse() { return __int_as_float(0x7f800000); }
  static __device__ __forceinline__ void store(void* statistics, int64_t row, int64_t rows,
                                               float lse, float delta) {
    static_cast<float*>(statistics)[row] = lse;
    static_cast<float*>(statistics)[rows + row] = delta;
  }
#endif
};

struct Args {
  const void* q;
  const void* k;
  const void* v;
  const void* dy;
  const float* lse;    // in base 2; the rows of a head are padded to whole tiles of 64
  const float* delta;  // delta of the same rows
  const float* norms;  // the maxima that determine the shift, see shift.cuh
  float* dq;           // sums of dQ / scale, in the layout of FinishArgs::sums
  void* dk;
  void* dv;
  baracuda_strides q_strides, k_strides, v_strides, dy_strides, dk_strides, dv_strides;
  baracuda_position_map q_map, k_map;
  const baracuda_position_map* device_maps;
  // Divides by q_map.stride. Its divisor is 0 if the host does not know the stride (device_maps),
  // or if the stride is 2^31 or more.
  Divisor q_stride;
  int heads, kv_heads, group;  // query heads; K/V heads; query heads for each K/V head
  int batch_kv_heads;
  int section;  // K/V heads whose key tiles are interleaved; ordered steps use `mixed` instead
  int query_len, key_len;
  int row_tiles;  // tiles of 64 rows in a query head
  int key_tiles;  // key tiles in a K/V head
  int no_row;     // first_row_of() returns it if no row sees the key; past all tiles
  float scale, scale_log2;
  bool causal;
  bool gradients_f32;  // dk and dv are f32, else they have the operands' type
  // The rest is for ordered steps, see backward/order.h.
  uint32_t* turns;      // the words of the query tiles; null if there are no query rows
  Divisor mixed;        // K/V heads in a section, whose key tiles are interleaved
  Divisor mixed_tiles;  // key tiles in a section
  bool shortest_first;  // blocks take the shortest key tiles of a head first
  int log2_sums;        // log2 of the number of sums of dQ for each query tile
};

struct KeyTile {
  int batch, kv_head, key0;
};

// The key tile of this block, in a step that is not ordered. Blocks take the heads section by
// section. In a section they take key tile 0 of every head, then key tile 1 of every head, and so
// on. Under a causal mask that is longest first, since most rows see key tile 0.
//
// The asm is volatile, so that the compiler computes the key tile again at the end of the block
// instead of keeping it in registers.
__device__ __forceinline__ KeyTile key_tile_of(const Args& args, int block_n) {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  const int section_blocks = args.section * args.key_tiles;
  const int first_head = block / section_blocks * args.section;
  const int rest = block % section_blocks;
  const int left = args.batch_kv_heads - first_head;
  const int heads = args.section < left ? args.section : left;
  const int head = first_head + rest % heads;
  return {head / args.kv_heads, head % args.kv_heads, rest / heads * block_n};
}

}  // namespace baracuda::sm80::backward
