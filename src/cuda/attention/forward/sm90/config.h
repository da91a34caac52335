// Tile shapes and the shared-memory plan of one instantiation of the sm90a kernel.
#pragma once

#include <stdint.h>

namespace baracuda::sm90 {

// FIRST or LAST; FIRST and LAST.
enum class Served { any_step, ends_of_rings, whole_calls };

// Warpgroup 0 copies, the others compute 64 query rows each.
// TakeTurns: they issue their products one after the other, in a fixed order. Pays with three of
// them at head_dim 64, where softmax takes longer than the products; with two, at head_dim 128 and
// 256, each does better on its own.
// LastN: columns that the last key tile is given where it holds no more keys; BlockN: no such case.
// ScoresAhead: the scores of a key tile are asked for before the products with V of the tile before
// the last are waited for; takes registers for the weights of two tiles. Served: the steps that
// there are kernels of it for.
template <typename Element_, int HeadDim, int BlockN, int Consumers, bool TakeTurns,
          int LastN = BlockN, bool ScoresAhead = false, Served Steps = Served::any_step>
struct Config {
  using Element = Element_;
  static constexpr int head_dim = HeadDim;
  static constexpr int block_n = BlockN;
  static constexpr int last_n = LastN;
  static constexpr int consumers = Consumers;
  static constexpr int group_m = 64;  // query rows of a warpgroup
  static constexpr int block_m = group_m * Consumers;
  static constexpr int threads = 128 * (Consumers + 1);
  // setmaxnreg shares out anew what the block was launched with; asking for more waits forever.
  static constexpr int launch_registers = 65536 / threads / 8 * 8;
  static constexpr bool scores_ahead = ScoresAhead;
  static constexpr bool wants_most_registers = ScoresAhead && BlockN > 128;
  static constexpr int producer_registers = Consumers > 2 ? 32 : wants_most_registers ? 24 : 56;
  // Answers of rows that see no key pass through registers of the warps that copy.
  static constexpr bool ends_keyless_rows = producer_registers > 24;
  static constexpr int consumer_registers = Consumers > 2 ? 160 : wants_most_registers ? 240 : 224;
  static_assert(producer_registers + Consumers * consumer_registers <=
                    (Consumers + 1) * launch_registers, "more registers than the block has");
  static_assert(Consumers <= 3, "a warp of warpgroup 0 for K and V, and one for each consumer");
  static constexpr int stages = 2;
  static constexpr bool take_turns = TakeTurns;
  static constexpr bool serves(bool first, bool last) {
    return Steps == Served::any_step || (first && last) ||
           (Steps == Served::ends_of_rings && (first || last));
  }

  // Tiles are blocks of 64 columns (128 bytes), all rows of a block together.
  static constexpr int column_blocks = HeadDim / 64;
  static constexpr int q_block_bytes = group_m * 128;
  static constexpr int kv_block_bytes = BlockN * 128;
  static constexpr int q_bytes = column_blocks * q_block_bytes;  // of a warpgroup
  static constexpr int kv_bytes = column_blocks * kv_block_bytes;
  static_assert(q_bytes % 1024 == 0 && kv_bytes % 1024 == 0, "swizzled tiles are 1024-aligned");

  static constexpr int k_offset = Consumers * q_bytes;
  static constexpr int v_offset = k_offset + stages * kv_bytes;
  // Slot n is written once the scores of tile n - 2 are all taken; tiles n - 1 and n - 2 still want
  // theirs then.
  static constexpr int slots = 4;
  static constexpr int slot_bytes = 4 * (8 + group_m);
  static constexpr int barriers = 4 * stages + Consumers * (slots + 2);

  static constexpr int slots_offset = v_offset + stages * kv_bytes;
  static constexpr int barrier_offset = slots_offset + Consumers * slots * slot_bytes;
  static constexpr int shared_bytes = barrier_offset + 8 * barriers;
  static constexpr int max_shared_bytes = 227 * 1024;
  static_assert(shared_bytes <= max_shared_bytes, "more shared memory than a block can have");
};

}  // namespace baracuda::sm90
