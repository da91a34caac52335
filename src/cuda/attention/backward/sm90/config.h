// Tile shapes and the shared-memory plan of one instantiation of the sm90a backward kernel.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

namespace baracuda::sm90::backward {

// Warpgroup 0 is the producer. The other warpgroups own 64 keys each of a key tile (128 if Halves
// is 2), and iterate over tiles of 64 queries. dQ of a query tile is computed one tile later, so
// that no warpgroup waits for the dS of a slower one. TMA adds dQ from buffers in shared memory.
// Pair: two blocks share their dQ, see kernel.cuh. Each holds the K of both blocks, two tiles of
// its own dS, one tile that the other block has sent, and one to be sent to the other block. It has
// no room for buffers of dQ, so its warps add dQ from registers. Ordered: sums of dQ have a fixed
// order, see order.h. StoresFirst: the first addition to a tile of dQ stores, see first_stores.cuh.
template <typename Element_, int HeadDim, int KStages, int DsStages, bool Pair = false,
          bool Ordered = false, bool StoresFirst = false, int Halves = 1>
struct Config {
  using Element = Element_;
  static constexpr int head_dim = HeadDim;
  static constexpr int consumers = 2;
  static constexpr int halves = Halves;  // number of 64-key tiles of a warpgroup
  static constexpr int half_n = 64;
  static constexpr int group_n = half_n * halves;
  static constexpr int block_n = group_n * consumers;
  static constexpr int block_m = 64;  // queries
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int launch_registers = 65536 / threads / 8 * 8;
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = 240;
  static_assert(producer_registers + consumers * consumer_registers <=
                    (consumers + 1) * launch_registers, "more registers than the block has");

  // True: registers hold K and V, and S of the next query tile beside P of this one.
  static constexpr bool ahead = HeadDim == 64 && Halves == 1;
  // Stages of Q and dO, and of key-tile descriptions.
  static constexpr int stages = ahead ? 4 : Halves == 2 ? 3 : 2;
  static constexpr int k_stages = KStages;
  static constexpr int ds_stages = DsStages;
  static constexpr int dq_stages = Pair ? 0 : 2;
  // True: a key tile's description keeps the first rows that see its keys until the tile is done.
  static constexpr bool keeps_rows = Halves == 2;
  static constexpr bool pair = Pair;
  static constexpr bool sends_ds = Pair;  // whether one warp only sends dS
  static constexpr bool ordered = Ordered;
  static constexpr int turn_words = Ordered;  // words of a query tile
  // A block takes its next key tile when it has this many query tiles left to load.
  static constexpr int lead = 4;
  static constexpr bool shifts = std::is_same_v<Element, __half>;  // see shift.cuh
  static_assert(!Pair || (KStages == 1 && DsStages == 4));
  static_assert(!StoresFirst || !(Pair || Ordered));
  static_assert(!(Pair && Ordered), "a pair adds from the registers of many threads");
  static_assert(DsStages >= 2, "dS is kept until dQ is made of it");
  static_assert(Halves == 1 || (HeadDim == 64 && KStages == 1 && !Pair && !StoresFirst));

  // A tile is stored as blocks of 64 columns (128 bytes), with all rows of a block together. dS is
  // stored transposed, with a row of 64 queries for each key.
  static constexpr int column_blocks = HeadDim / 64;
  static constexpr int q_block_bytes = block_m * 128;
  static constexpr int kv_block_bytes = block_n * 128;
  static constexpr int q_bytes = column_blocks * q_block_bytes;
  static constexpr int kv_bytes = column_blocks * kv_block_bytes;
  static constexpr int ds_bytes = block_n * 128;
  static constexpr int dq_floats = block_m * HeadDim;    // of a query tile
  // True: lse and delta of a query tile have separate tiles. The A fragment of ones is then the
  // same in all lanes.
  static constexpr bool apart = HeadDim == 64;
  static constexpr int statistics_bytes = (apart ? 32 : 16) * block_m;  // see statistics.cuh

  static constexpr int k_offset = 0;
  static constexpr int v_offset = k_offset + (Pair ? 2 : k_stages) * kv_bytes;
  static constexpr int q_offset = v_offset + kv_bytes;
  static constexpr int dy_offset = q_offset + stages * q_bytes;
  // Not at the end, because memcheck assumes twice the bytes for an operand of eight columns.
  static constexpr int statistics_offset = dy_offset + stages * q_bytes;
  static constexpr int ds_offset = statistics_offset + stages * statistics_bytes;
  static constexpr int dq_offset = ds_offset + ds_stages * ds_bytes;
  static constexpr int remote_ds_offset = ds_offset + 2 * ds_bytes;
  static constexpr int outgoing_ds_offset = ds_offset + 3 * ds_bytes;
  static constexpr int slots_offset = dq_offset + dq_stages * 4 * dq_floats;
  static constexpr int slot_bytes = 32;
  static constexpr int rows_offset = slots_offset + stages * slot_bytes;
  static constexpr int barrier_offset = rows_offset + (keeps_rows ? stages : 1) * 4 * block_n;
  static constexpr int barriers =
      6 * stages + 2 * k_stages + 3 + ds_stages + dq_stages + consumers + (Pair ? 5 : 0) + Ordered;
  static constexpr int shared_bytes = barrier_offset + 8 * barriers;
  static constexpr int max_shared_bytes = 227 * 1024;
  static_assert(shared_bytes <= max_shared_bytes, "more shared memory than a block can have");
};

}  // namespace baracuda::sm90::backward
