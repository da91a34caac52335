// Arguments of the sm80 backward kernel, and the key tile of a block.
#pragma once

#include "attention/backward/first_row.cuh"
#include "baracuda/element.h"
#include "common/divisor.h"

namespace baracuda::sm80::backward {

// The row statistics of the kernel: two arrays over the rows of all tiles, lse in base 2 and delta.
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
  const float* lse;    // of all rows of all 64-row tiles, in base 2
  const float* delta;  // of the same rows
  const float* norms;  // see shift.cuh
  float* dq;           // sums of dQ / scale, in the order of FinishArgs::sums
  void* dk;
  void* dv;
  baracuda_strides q_strides, k_strides, v_strides, dy_strides, dk_strides, dv_strides;
  baracuda_position_map q_map, k_map;
  const baracuda_position_map* device_maps;
  Divisor q_stride;  // stride of q_map; 0 if only the device knows it
  int heads, kv_heads, group;  // query heads; key heads; query heads of a key head
  int batch_kv_heads;
  int section;  // number of heads whose key tiles are mixed, longest first
  int query_len, key_len;
  int row_tiles;  // 64-row tiles of a head
  int key_tiles;
  int no_row;
  float scale, scale_log2;
  bool causal;
  bool gradients_f32;  // dk and dv are f32; else of the operands' type
  // The following are for ordered steps, see backward/order.h.
  uint32_t* turns;  // null: the problem has no rows
  Divisor mixed;    // number of heads whose key tiles are mixed
  Divisor mixed_tiles;  // number of their key tiles
  bool shortest_first;
  int log2_sums;  // binary logarithm of the number of sums of dQ of a query tile
};

struct KeyTile {
  int batch, kv_head, key0;
};

// Sections of heads run one after the other. In a section, tiles run from the first to the last;
// under a causal mask most rows see the first.
//
// Volatile, so that the end of the block computes it again and does not keep it in registers.
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
