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
  // The number of K/V heads in a section, whose key tiles are interleaved. In ordered steps `mixed`
  // has this number.
  int section;
  int query_len, key_len;
  int row_tiles;  // tiles of 64 rows in a query head
  int key_tiles;  // key tiles in a K/V head
  int no_row;     // what first_row_of() returns if no row sees the key: the end of the last tile
  float scale, scale_log2;
  bool borders_vary;  // rows may see different keys, see problem.h
  bool gradients_f32;  // dk and dv are f32, else they have the operands' type
  // The rest is for ordered steps, see backward/order.h.
  // A turn word for each sum of dQ of each query tile (turn_words.h). Before them, at turns[-1], is
  // the counter of key tiles. Null if there are no query rows.
  uint32_t* turns;
  Divisor mixed;        // the number of K/V heads in a section
  Divisor mixed_tiles;  // the number of key tiles in a section
  // Blocks take the key tiles of a head that the fewest rows see first, except in the last section
  // (drawn_tile()).
  bool shortest_first;
  int log2_sums;  // log2 of the number of sums of dQ for each query tile
};

struct KeyTile {
  int batch, kv_head, key0;
};

// The key tile of this block, in a step that is not ordered. Blocks take the heads section by
// section. In a section they take key tile 0 of every head, then key tile 1 of every head, and so
// on. Under a causal mask, the key tiles that the most rows see come first.
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
