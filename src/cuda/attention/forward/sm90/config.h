// Tile shapes and the shared-memory plan of one instantiation of the sm90a kernel.
#pragma once

#include <stdint.h>

namespace baracuda::sm90 {

// The steps that a configuration has kernels for. FIRST and LAST (attention.h) mark the steps that
// begin and end a state. any_step: all steps. ends_of_rings: steps with FIRST or LAST. whole_calls:
// steps with both. beginnings: steps with FIRST. endings: steps with LAST. continuations: steps
// without FIRST.
enum class Served { any_step, ends_of_rings, whole_calls, beginnings, endings, continuations };

// Warpgroup 0 is the producer. The others are consumers of 64 query rows each.
//
// TakeTurns: the consumers issue their products in a fixed order, so that their softmax and their
// products alternate (ping-pong). This pays with three consumers at head_dim 64, where the softmax
// takes longer than the products. With two consumers, at head_dim 128 and 256, it does not.
//
// LastN: if the last key tile has at most LastN keys, only LastN of its columns are computed. If
// LastN is BlockN, all columns are always computed.
//
// ScoresAhead: the weights P (state.cuh) of a key tile are computed while the product PV of the key
// tile processed before it still reads its own P. So the weights of two key tiles need registers at
// the same time. (In iteration i, QK is issued before the wait for PV of iteration i - 2.)
//
// Steps: the steps that the configuration has kernels for.
//
// Cluster: the number of blocks that share K and V, 1 or 2. The blocks of a cluster take adjacent
// query tiles of a head. Each copies one half of every tile of K and V to both. Then L2 sends K and V
// once for the query rows of both, which saves power.
template <typename Element_, int HeadDim, int BlockN, int Consumers, bool TakeTurns,
          int LastN = BlockN, bool ScoresAhead = false, Served Steps = Served::any_step,
          int Cluster = 1>
struct Config {
  using Element = Element_;
  static constexpr int head_dim = HeadDim;
  static constexpr int block_n = BlockN;
  static constexpr int last_n = LastN;
  static constexpr int consumers = Consumers;
  static constexpr int group_m = 64;  // query rows of a warpgroup
  static constexpr int block_m = group_m * Consumers;
  static constexpr int cluster = Cluster;
  static constexpr int cluster_m = block_m * Cluster;  // query rows of a cluster
  static constexpr int copied_n = BlockN / Cluster;    // rows of a key tile that a block copies
  static_assert(copied_n % 8 == 0, "the two parts of a key tile must be whole groups of eight rows");
  static constexpr int threads = 128 * (Consumers + 1);
  // setmaxnreg redistributes these registers among the warpgroups. A request for more of them than
  // there are would wait forever.
  static constexpr int launch_registers = 65536 / threads / 8 * 8;
  static constexpr bool scores_ahead = ScoresAhead;
  // Whether consumers go from query tile to query tile without a pause (consumer_ahead.cuh). Steps that
  // continue a state do not: they have no registers for that, and gained nothing by it.
  static constexpr bool continuous =
      ScoresAhead && (Steps == Served::beginnings || Steps == Served::whole_calls);
  static constexpr bool wants_most_registers = ScoresAhead && BlockN > 128;
  static constexpr int producer_registers =
      Consumers > 2 ? 32 : wants_most_registers ? 24 : continuous ? 40 : 56;
  // The producer warps write the outputs of fully masked rows. 24 registers are too few for that.
  static constexpr bool finishes_masked_rows = producer_registers > 24;
  static constexpr int consumer_registers =
      Consumers > 2 ? 160 : wants_most_registers ? 240 : continuous ? 232 : 224;
  // Whether the last step of a ring prefetches the previous state into L2, and (up to head_dim 128)
  // loads o_acc during the last PV product. With three consumers at head_dim 128 there are no
  // registers for either.
  static constexpr bool loads_state_early = Consumers <= 2 || HeadDim <= 64;
  static_assert(producer_registers + Consumers * consumer_registers <=
                    (Consumers + 1) * launch_registers, "more registers than the block has");
  static_assert(Consumers <= 3, "warpgroup 0 has one warp for K and V, three for Q");
  // The places for Q of a warpgroup. If there are two, outputs are staged in them, too.
  static constexpr int q_stages = continuous ? 2 : 1;
  static constexpr bool stages_in_q = q_stages == 2;
  static constexpr int stages = 2;  // buffers for tiles of K, and as many for tiles of V
  static constexpr bool take_turns = TakeTurns;
  static constexpr bool serves(bool first, bool last) {
    switch (Steps) {
      case Served::any_step: return true;
      case Served::ends_of_rings: return first || last;
      case Served::whole_calls: return first && last;
      case Served::beginnings: return first;
      case Served::endings: return last;
      case Served::continuations: return !first;
    }
    return false;
  }

  // A tile is stored as blocks of 64 columns (128 bytes). Each block has all rows.
  static constexpr int column_blocks = HeadDim / 64;
  static constexpr int q_block_bytes = group_m * 128;
  static constexpr int kv_block_bytes = BlockN * 128;
  static constexpr int q_bytes = column_blocks * q_block_bytes;  // Q of one warpgroup
  static constexpr int kv_bytes = column_blocks * kv_block_bytes;
  static_assert(q_bytes % 1024 == 0 && kv_bytes % 1024 == 0, "swizzled tiles are 1024-aligned");

  // The place of Q of a query tile and a warpgroup.
  static constexpr __host__ __device__ uint32_t q_offset(int group, uint32_t query_tile) {
    return (group * q_stages + query_tile % q_stages) * q_bytes;
  }
  static constexpr int k_offset = Consumers * q_stages * q_bytes;
  static constexpr int v_offset = k_offset + stages * kv_bytes;
  // A slot describes a query tile (WorkTile, barriers.cuh). When the producer writes the slot of
  // tile n, its last wait at the barrier q_empty showed only this: with one place for Q, that the QK
  // products of tile n - 2 have ended; with two, that tile n - 3 has. So the slots of tiles n - 2 and
  // n - 1 may still be read, and three slots must exist at a time. With four, n % slots is a bit mask.
  static constexpr int slots = 4;
  static constexpr int slot_bytes = 4 * (8 + group_m);
  static constexpr int barriers = 4 * stages + Consumers * (slots + 2 * q_stages);

  static constexpr int y_offset = v_offset + stages * kv_bytes;
  static constexpr int control_bytes = Consumers * slots * slot_bytes + 8 * barriers;
  static constexpr int max_shared_bytes = 227 * 1024;
  // Whether outputs are staged in shared memory (output_stage.cuh). If they are not staged in the
  // places of Q, they have a place of that size of their own, wherever that fits.
  static constexpr bool stages_output =
      stages_in_q || y_offset + Consumers * q_bytes + control_bytes <= max_shared_bytes;
  static constexpr int y_rows = stages_in_q ? group_m : group_m / 4;  // that TMA copies at a time
  static constexpr int y_bytes = stages_output && !stages_in_q ? Consumers * q_bytes : 0;
  static constexpr int slots_offset = y_offset + y_bytes;
  static constexpr int barrier_offset = slots_offset + Consumers * slots * slot_bytes;
  static constexpr int shared_bytes = slots_offset + control_bytes;
  static_assert(shared_bytes <= max_shared_bytes, "more shared memory than a block can have");
};

}  // namespace baracuda::sm90
