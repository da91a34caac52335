// Tile shapes and the shared-memory plan of one instantiation of the sm80 backward kernel.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

#include "common/swizzled_tile.cuh"

namespace baracuda::sm80::backward {

// Warps own WarpKeys keys each, and iterate over tiles of BlockM queries. Paired: one of two groups
// of warps computes S and dV, the other dP and dK. Otherwise a warp computes all four, for ScoreM
// queries at a time. Ordered: dQ is summed in a fixed order, see backward/order.h.
template <typename Element_, int HeadDim, int Warps, int WarpKeys, int BlockM, int BlocksPerSm,
          bool Paired, int ScoreM = BlockM, int Stages = 2, bool Ordered = false>
struct Config {
  using Element = Element_;
  using Layout = RowLayout<HeadDim>;   // tiles of Q, K, V and dO
  using DsLayout = RowLayout<BlockM>;  // a tile of dS, with a row for each key
  static constexpr int head_dim = HeadDim;
  static constexpr int warps = Warps;
  static constexpr int group_warps = Paired ? Warps / 2 : Warps;
  static constexpr bool paired = Paired;
  static constexpr int threads = 32 * warps;
  static constexpr int score_m = ScoreM;
  static constexpr int blocks_per_sm = BlocksPerSm;
  static constexpr int warp_keys = WarpKeys;
  static constexpr int key_blocks = WarpKeys / 16;
  static constexpr int block_n = group_warps * WarpKeys;
  static constexpr int block_m = BlockM;
  static constexpr int stages = Stages;  // pipeline stages of Q and dO
  static constexpr int ds_stages = 2;
  static constexpr bool ordered = Ordered;
  // The number of turn words of each sum of dQ of a 64-row query tile (turn_words.h).
  static constexpr int turn_words = Ordered;
  static constexpr int tile_parts = 64 / BlockM;  // tiles of BlockM queries in 64 rows
  static constexpr bool shifts = std::is_same_v<Element, __half>;  // scales P and dS, see shift.cuh
  static_assert(WarpKeys % 16 == 0 && BlockM % ScoreM == 0 && 64 % BlockM == 0);

  // A grid of dq_row_warps x dq_column_warps warps computes dQ of a query tile. Each takes
  // dq_row_blocks blocks of 16 rows, and every dq_column_warps-th group of 16 columns.
  static constexpr int dq_column_warps = (Layout::span < warps ? Layout::span : warps) / 2;
  static constexpr int dq_row_warps =
      warps / dq_column_warps < BlockM / 16 ? warps / dq_column_warps : BlockM / 16;
  static constexpr int dq_row_blocks = BlockM / 16 / dq_row_warps;
  // If the loop of make_dq() is unrolled further, ptxas spills registers.
  static constexpr int dq_unroll = Ordered && HeadDim == 192 ? 1 : Paired ? 2 : 4;
  static constexpr int dq_column_pairs = HeadDim / 16 / dq_column_warps;

  static constexpr int kv_bytes = block_n * Layout::bytes;
  static constexpr int q_bytes = BlockM * Layout::bytes;
  static constexpr int ds_bytes = block_n * DsLayout::bytes;
  static constexpr int statistics_bytes = 2 * 4 * BlockM;

  static constexpr int k_offset = 0;
  static constexpr int v_offset = k_offset + kv_bytes;
  static constexpr int q_offset = v_offset + kv_bytes;
  static constexpr int dy_offset = q_offset + stages * q_bytes;
  static constexpr int ds_offset = dy_offset + stages * q_bytes;
  static constexpr int p_offset = ds_offset + ds_stages * ds_bytes;
  static constexpr int statistics_offset = p_offset + (Paired ? 4 * block_n * BlockM : 0);
  static constexpr int rows_offset = statistics_offset + stages * statistics_bytes;
  static constexpr int shift_offset = rows_offset + 4 * block_n;
  static constexpr int turns_offset = (shift_offset + 4 + 15) / 16 * 16;
  static constexpr int shared_bytes = Ordered ? turns_offset + 64 : shift_offset + 4;
  static_assert(shared_bytes <= 227 * 1024, "more shared memory than a block can have");
};

}  // namespace baracuda::sm80::backward
