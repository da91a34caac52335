// Shapes and the shared-memory plan of the sm90a backward kernel at head_dim 256.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

namespace baracuda::sm90::backward {

// The two blocks of a cluster iterate over the same query tiles, each with 64 keys of its own. Each
// computes one half of the columns of dQ, over the keys of both, and holds that half of the other
// block's K. In a block one warpgroup computes S, P and dV, one dP, dS and dK, and one dQ, because
// a warpgroup's registers hold only one gradient of 64 keys by 256 columns. The first passes P to
// the second, in f32. Multicast: each block loads one half of Q and dO for both. Ordered: sums of
// dQ have a fixed order, see backward/order.h; each half of the columns has its own turn.
template <typename Element_, bool Multicast, bool Ordered = false>
struct WideConfig {
  using Element = Element_;
  static constexpr int head_dim = 256;
  static constexpr int consumers = 3;
  static constexpr int group_n = 64;
  static constexpr int halves = 1;
  static constexpr bool apart = false;
  static constexpr bool keeps_rows = false;
  static constexpr int block_n = 64;  // keys
  static constexpr int block_m = 64;  // queries
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = 0;  // each consumer sets its own number
  static constexpr int gradient_registers = 192;
  static constexpr int dq_registers = 104;
  static_assert(producer_registers + 2 * gradient_registers + dq_registers <= 512);

  static constexpr int stages = 2;  // of Q and of key-tile descriptions; dO has one stage
  static constexpr int dq_stages = 0;  // see dq_pieces
  static constexpr bool pair = true;
  static constexpr bool ordered = Ordered;
  static constexpr int turn_words = Ordered ? 2 : 0;  // words of a query tile
  // A block takes its next key tile when it has this many query tiles left to load.
  static constexpr int lead = 4;
  static constexpr bool sends_ds = false;  // whether one warp only sends dS
  static constexpr bool multicast = Multicast;
  static constexpr bool shifts = std::is_same_v<Element, __half>;  // see shift.cuh

  // A tile is stored as blocks of 64 columns (128 bytes), with all rows of a block together. dS is
  // stored transposed, with a row of 64 queries for each key. P and dQ are stored in the order of
  // the accumulators: [column / 8][thread][4].
  static constexpr int column_blocks = head_dim / 64;
  static constexpr int block_bytes = 64 * 128;
  static constexpr int q_block_bytes = block_bytes, kv_block_bytes = block_bytes;
  static constexpr int tile_bytes = column_blocks * block_bytes;
  static constexpr int half_bytes = tile_bytes / 2;
  static constexpr int ds_bytes = block_bytes;
  static constexpr int p_bytes = 4 * block_n * block_m;
  static constexpr int dq_floats = block_m * head_dim;   // of a query tile
  static constexpr int dq_piece_bytes = 4 * dq_floats / 8;  // added by one copy
  static constexpr int dq_pieces = 2;                       // buffers for pieces
  static constexpr int pieces_of_half = 4;                  // pieces of half of the columns
  static constexpr int statistics_bytes = 16 * block_m;  // of a query tile, see statistics.cuh

  static constexpr int k_offset = 0;
  static constexpr int remote_k_offset = k_offset + tile_bytes;
  static constexpr int v_offset = remote_k_offset + half_bytes;
  static constexpr int q_offset = v_offset + tile_bytes;
  static constexpr int dy_offset = q_offset + stages * tile_bytes;
  static constexpr int ds_offset = dy_offset + tile_bytes;
  static constexpr int remote_ds_offset = ds_offset + ds_bytes;
  // Not at the end, because memcheck assumes twice the bytes for an operand that is read twice.
  static constexpr int statistics_offset = remote_ds_offset + ds_bytes;
  static constexpr int p_offset = statistics_offset + stages * statistics_bytes;
  static constexpr int dq_offset = p_offset + p_bytes;
  static constexpr int slots_offset = dq_offset + dq_pieces * dq_piece_bytes;
  static constexpr int slot_bytes = Ordered ? 48 : 32;
  static constexpr int rows_offset = slots_offset + stages * slot_bytes;
  static constexpr int barrier_offset = rows_offset + 4 * block_n;
  static constexpr int barriers = Ordered ? 26 : 17;
  static constexpr int next_tile_offset = barrier_offset + 8 * barriers;
  static constexpr int shared_bytes = next_tile_offset + (Ordered ? 4 : 0);
  static constexpr int max_shared_bytes = 227 * 1024;
  static_assert(shared_bytes <= max_shared_bytes, "more shared memory than a block can have");
};

}  // namespace baracuda::sm90::backward
