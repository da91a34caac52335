// dQ of a query tile: the products of dS and K, and their addition in memory.
#pragma once

#include "attention/backward/sm80/block.cuh"
#include "common/global_access.cuh"
#include "common/mma_sync.cuh"

namespace baracuda::sm80::backward {

// row_block: the index of the first block of 16 rows, counted from the start of the head. In
// ordered steps it is counted from the start of the query tile, whose index is turns.rows(stage).
template <typename C>
__device__ __forceinline__ void add_dq(
    const Block<C>& block, const float (&dq)[C::dq_row_blocks][2 * C::dq_column_pairs][4],
    int head, int row_block, int column, int stage) {
  int lane = threadIdx.x % 32;
  int64_t tile =
      int64_t{block.tile.batch * block.args.heads + head} * block.args.row_tiles + row_block / 4;
  bool is_first = false;  // the sum is still unwritten, so store instead of adding
  if constexpr (C::ordered) {
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    const int rows = block.turns.rows(stage);
    tile = rows / C::tile_parts;
    row_block += rows % C::tile_parts * (C::block_m / 16);
    is_first = block.turns.is_first(stage);
  }
  float4* const to = reinterpret_cast<float4*>(block.args.dq + tile * (64 * C::head_dim)) +
                     row_block % 4 * 32 + lane;
  const float factor = block.unshift();
#pragma unroll
  for (int i = 0; i < C::dq_row_blocks; ++i)
#pragma unroll
    for (int j = 0; j < 2 * C::dq_column_pairs; ++j) {
      const float(&x)[4] = dq[i][j];
      const int column_block = 2 * (column + j / 2 * C::dq_column_warps) + j % 2;
      if (C::ordered && is_first) {
        to[column_block * 128 + i * 32] =
            make_float4(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor);
      } else {
        // x * factor is repeated in both branches. With one variable for both, ptxas spilled
        // registers.
        add_in_memory(to + column_block * 128 + i * 32,
                      make_float4(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor));
      }
    }
}

// Computes this warp's part of dQ of query tile m of a head, whose dS is complete. In ordered steps
// head and m are 0, and turns.rows(stage) is the index of the query tile.
template <typename C>
__device__ __forceinline__ void make_dq(const Block<C>& block, int head, int m, int stage) {
  const int lane = block.lane();
  const int column = block.warp() % C::dq_column_warps, row = block.warp() / C::dq_column_warps;
  if (C::dq_row_warps * C::dq_column_warps < C::warps && row >= C::dq_row_warps) return;
  float dq[C::dq_row_blocks][2 * C::dq_column_pairs][4];
#pragma unroll
  for (int i = 0; i < C::dq_row_blocks; ++i)
#pragma unroll
    for (int j = 0; j < 2 * C::dq_column_pairs; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) dq[i][j][c] = 0.0f;
  // In shared memory, dS has a row for each key. A needs a row for each query, so ldmatrix
  // transposes dS.
  const uint32_t ds_tile = block.shared + C::ds_offset + stage * C::ds_bytes;
  uint32_t a_address[C::dq_row_blocks];
#pragma unroll
  for (int i = 0; i < C::dq_row_blocks; ++i)
    a_address[i] = ds_tile + C::DsLayout::offset(lane / 16 * 8 + lane % 8,
                                              (row * C::dq_row_blocks + i) * 2 + lane / 8 % 2);
  const uint32_t b_address =
      block.shared + C::k_offset + C::Layout::offset(lane % 16, 2 * column + lane / 16);
#pragma unroll (C::dq_unroll)
  for (int k = 0; k < C::block_n / 16; ++k) {
    uint32_t a[C::dq_row_blocks][4];
#pragma unroll
    for (int i = 0; i < C::dq_row_blocks; ++i)
      ldmatrix_x4_trans(a[i], a_address[i] + k * 16 * C::DsLayout::bytes);
#pragma unroll
    for (int j = 0; j < C::dq_column_pairs; ++j) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, C::Layout::advance(b_address, 2 * C::dq_column_warps * j) +
                               k * 16 * C::Layout::bytes);
#pragma unroll
      for (int i = 0; i < C::dq_row_blocks; ++i) {
        mma_16816<typename C::Element>(dq[i][2 * j], a[i], b[0], b[1]);
        mma_16816<typename C::Element>(dq[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
  add_dq(block, dq, head, m * (C::block_m / 16) + row * C::dq_row_blocks, column, stage);
}

}  // namespace baracuda::sm80::backward
