// The producer warps of the sm90a backward kernel. One schedules key tiles for all others, one
// loads tiles, and one or two add dQ; in pairs one sends dS instead. The first lane of a warp
// issues its copies.
#pragma once

#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/first_stores.cuh"
#include "attention/backward/sm90/key_tiles.cuh"
#include "attention/backward/sm90/turns.cuh"
#include "common/cluster.cuh"
#include "common/tma.cuh"
#include "common/uniform.cuh"

namespace baracuda::sm90::backward {

// The scheduler warp: describes key tiles in the slots, ahead of the consumers.
template <typename C>
__device__ __forceinline__ void schedule_key_tiles(const Args& args, uint32_t shared,
                                                   const Barriers<C>& barriers) {
  const int lane = threadIdx.x % 32;
  KeyTileScheduler<C::pair ? 2 : 1> scheduler;
  KeyTile tile;
  int n = 0;  // ordered steps: the number of the key tile, see drawn_tile()
  bool more = true;
#pragma unroll 1
  for (uint32_t item = 0; more; ++item) {
    const int stage = stage_of<C::stages>(item);
    const WorkTile<C> slot(shared, item);
    if constexpr (C::ordered) {
      if (item > 0) mbarrier_wait(barriers.tile_due(), parity_of<1>(item - 1));
      more = DynamicKeyTileScheduler<C>(shared, barriers).next(args, item, n);
    } else {
      more = scheduler.next(args, tile);
    }
    mbarrier_wait(barriers.slot_empty(stage), parity_of<C::stages>(item) ^ 1);
    if (more) {
      if constexpr (!C::keeps_rows)
        mbarrier_wait(barriers.first_rows_empty(), parity_of<1>(item) ^ 1);
      // Computed again here, since there are no registers to keep it in.
      if constexpr (C::ordered) tile = DynamicKeyTileScheduler<C>::at(args, n);
      const FirstRows<C> rows(shared, item);
      const int index = C::pair ? 2 * tile.index + cluster_rank() : tile.index;
      if (lane == 0) {
        if constexpr (C::slot_bytes > 32)
          slot.set_sum(sum_of(args, tile.index) +
                           (tile.batch * args.heads + tile.kv_head * args.group) * args.query_tiles,
                       place_in_sum(tile.index, args.log2_sums));
        slot.set_tile(tile.batch, tile.kv_head, index * C::block_n);
        if constexpr (C::ordered)
          slot.set_next_begin(
              first_row_of(args, int64_t{tile.index + args.dq_sums} * (C::pair ? 2 : 1) * C::block_n) /
              C::block_m);
      }
#pragma unroll 1
      for (int i = lane; i < C::block_n; i += 32)
        rows.set(i, first_row_of(args, int64_t{index} * C::block_n + i));
      __syncwarp();
      if (lane == 0) {
        const int first_row =
            C::pair ? first_row_of(args, int64_t{tile.index} * 2 * C::block_n) : rows.get(0);
        const int first = first_row / C::block_m;
        const int count = first_row < args.query_len ? args.query_tiles - first : 0;
        const int begin = tile.descends ? args.query_tiles - 1 : first;
        slot.set_queries(count, begin, tile.descends ? -1 : 1, rows.get(C::block_n - 1));
      }
    } else if (lane == 0) {
      slot.set_end();
    }
    mbarrier_arrive(barriers.slot_full(stage));
  }
}

// Adds the dQ tiles that the consumers leave in shared memory to global memory.
template <typename C>
__device__ __forceinline__ void add_dq(const Args& args, uint32_t shared,
                                       const Barriers<C>& barriers) {
  const bool leads = threadIdx.x % 32 == 0;
  uint32_t n = 0;
#pragma unroll 1
  for (uint32_t item = 0;; ++item) {
    const int stage = stage_of<C::stages>(item);
    mbarrier_wait(barriers.slot_full(stage), parity_of<C::stages>(item));
    const WorkTile<C> slot(shared, item);
    const int count = uniform(slot.count());
    if (count < 0) break;
    const QueryTiles queries{slot.begin(), slot.step()};
    int head = slot.batch() * args.heads + slot.kv_head() * args.group;
    const int last_head = head + args.group;
    __syncwarp();
    if (leads) mbarrier_arrive(barriers.slot_empty(stage));
#pragma unroll 1
    for (; head < last_head; ++head) {
      float* const dq = args.dq + int64_t{head} * args.query_tiles * C::dq_floats;
#pragma unroll 1
      for (int i = 0; i < count; ++i, ++n) {
        const int buffer = stage_of<C::dq_stages>(n);
        mbarrier_wait(barriers.dq_full(buffer), parity_of<C::dq_stages>(n));
        if (leads) {
          tma_add_bytes(dq + int64_t{queries.at(i)} * C::dq_floats,
                        shared + C::dq_offset + buffer * 4 * C::dq_floats, 4 * C::dq_floats);
          tma_commit();
          // The buffer that has been read goes to the warpgroup of query tile n + 1.
          tma_wait_read<C::dq_stages - 1>();
          if (n + 1 >= C::dq_stages) mbarrier_arrive(barriers.dq_turn((n + 1) % C::consumers));
        }
        __syncwarp();
      }
    }
  }
  if (leads) tma_wait<0>();
}

// The same, but the first addition to a tile is a store. Each warp serves one buffer: every second
// query tile.
template <typename C>
__device__ __forceinline__ void add_dq_storing(const Args& args, uint32_t shared,
                                               const Barriers<C>& barriers, uint32_t buffer) {
  static_assert(C::dq_stages == 2 && C::consumers == 2);
  if (threadIdx.x % 32 != 0) return;
  uint32_t n = 0;
#pragma unroll 1
  for (uint32_t item = 0;; ++item) {
    const int stage = stage_of<C::stages>(item);
    mbarrier_wait(barriers.slot_full(stage), parity_of<C::stages>(item));
    const WorkTile<C> slot(shared, item);
    const int count = slot.count();
    if (count < 0) break;
    const QueryTiles queries{slot.begin(), slot.step()};
    const int head = (slot.batch() * args.heads + slot.kv_head() * args.group) * args.query_tiles;
    for_each_query_tile<false>(args.group, count, [&](int g, int i) {
      if (n % 2 == buffer) {
        const int tile = head + g * args.query_tiles + queries.at(i);
        uint32_t* const word = args.turns + tile;
        const uint32_t found = load_acquire(word);
        mbarrier_wait(barriers.dq_full(buffer), parity_of<C::dq_stages>(n));
        float* const dq = args.dq + int64_t{tile} * C::dq_floats;
        const uint32_t from = shared + C::dq_offset + buffer * 4 * C::dq_floats;
        const bool is_first = claim(word, found);
        if (is_first) {
          tma_store_bytes(dq, from, 4 * C::dq_floats);
        } else {
          tma_add_bytes(dq, from, 4 * C::dq_floats);
        }
        tma_commit();
        tma_wait_read<0>();
        mbarrier_arrive(barriers.dq_turn(buffer));
        if (is_first) {
          tma_wait<0>();
          publish(word);
        }
      }
      ++n;
    });
    mbarrier_arrive(barriers.slot_empty(stage));
  }
  tma_wait<0>();
}

// The same, with every addition in its turn. Each of two warps serves one buffer: every second
// query tile. A turn is passed only when the addition is complete. For a small head_dim that takes
// as long as a query tile, so one warp would be too slow.
template <typename C>
__device__ __forceinline__ void add_dq_in_turn(const Args& args, uint32_t shared,
                                               const Barriers<C>& barriers, uint32_t buffer) {
  static_assert(C::dq_stages == 2 && C::consumers == 2);
  if (threadIdx.x % 32 != 0) return;
  uint32_t n = 0;
#pragma unroll 1
  for (uint32_t item = 0;; ++item) {
    const int stage = stage_of<C::stages>(item);
    mbarrier_wait(barriers.slot_full(stage), parity_of<C::stages>(item));
    const WorkTile<C> slot(shared, item);
    const int count = slot.count();
    if (count < 0) return;
    for_each_query_tile<true>(args.group, count, [&](int g, int i) {
      if (n % 2 == buffer) {
        // Read again each time, since registers are scarce.
        const int m = QueryTiles{slot.begin(), slot.step()}.at(i);
        const int head = slot.batch() * args.heads + slot.kv_head() * args.group + g;
        const int index = slot.key0() / C::block_n;
        const int tile = sum_of(args, index) + head * args.query_tiles + m;
        const KeyTileTurn turn{place_in_sum(index, args.log2_sums), slot.next_begin(),
                               !args.borders_vary || slot.step() < 0};
        const bool is_first = await_turn(args.turns + tile, turn, m);
        mbarrier_wait(barriers.dq_full(buffer), parity_of<C::dq_stages>(n));
        float* const dq = args.dq + int64_t{tile} * C::dq_floats;
        const uint32_t from = shared + C::dq_offset + buffer * 4 * C::dq_floats;
        if (is_first) {
          tma_store_bytes(dq, from, 4 * C::dq_floats);
        } else {
          tma_add_bytes(dq, from, 4 * C::dq_floats);
        }
        tma_commit();
        tma_wait_read<0>();
        mbarrier_arrive(barriers.dq_turn(buffer));
        tma_wait<0>();
        pass_turn(args.turns + tile, turn, m);
      }
      ++n;
    });
    mbarrier_arrive(barriers.slot_empty(stage));
  }
}

// Pairs only: sends dS of the query tiles whose dQ the other block computes, and confirms the dS
// that arrives here.
template <typename C>
__device__ __forceinline__ void exchange_ds(uint32_t shared, const Barriers<C>& barriers,
                                            int group_heads) {
  const bool leads = threadIdx.x % 32 == 0;
  const int rank = cluster_rank();
  uint32_t n = 0;
#pragma unroll 1
  for (uint32_t item = 0;; ++item) {
    const int stage = stage_of<C::stages>(item);
    mbarrier_wait(barriers.slot_full(stage), parity_of<C::stages>(item));
    const int count = uniform(WorkTile<C>(shared, item).count());
    if (count < 0) break;
    __syncwarp();
    if (leads) mbarrier_arrive(barriers.slot_empty(stage));
    const uint32_t end = n + count * group_heads;
#pragma unroll 1
    for (; n < end; ++n) {
      const uint32_t turn = n / 2;
      const uint32_t full = barriers.remote_ds_full(turn % 2);
      if (n % 2 == rank) {
        if (leads) mbarrier_arrive_expect(full, C::ds_bytes);
        mbarrier_wait(full, turn / 2 & 1);
        if (leads) mbarrier_arrive_at(address_at(rank ^ 1, barriers.outgoing_ds_empty()));
      } else {
        mbarrier_wait(barriers.outgoing_ds_full(), turn & 1);
        mbarrier_wait(barriers.remote_ds_empty(), turn & 1 ^ 1);
        if (leads)
          copy_to_block(address_at(rank ^ 1, shared + C::remote_ds_offset),
                        shared + C::outgoing_ds_offset, C::ds_bytes, address_at(rank ^ 1, full));
      }
      __syncwarp();
    }
  }
}

template <typename C>
class Producer {
 public:
  __device__ __forceinline__ Producer(const Args& args, uint32_t shared,
                                      const Barriers<C>& barriers)
      : args_(args), shared_(shared), barriers_(barriers) {}

  __device__ __forceinline__ void run() {
    uint32_t n = 0;  // query tiles so far
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      const int stage = stage_of<C::stages>(item);
      mbarrier_wait(barriers_.slot_full(stage), parity_of<C::stages>(item));
      const WorkTile<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) return;
      const int key0 = slot.key0(), batch = slot.batch(), kv_head = slot.kv_head();
      const QueryTiles queries{slot.begin(), slot.step()};
      __syncwarp();
      if (leads()) mbarrier_arrive(barriers_.slot_empty(stage));
      // A single buffer of K is the last to become free.
      constexpr bool k_first = C::k_stages > 1;
      if (k_first || count == 0) load_k(item, key0, kv_head, batch);
      bool has_v = false;
      int left = count * args_.group;
      const int due = left < C::lead ? left : C::lead;
      const auto take_next_when_due = [&] {
        if constexpr (C::ordered) {
          if (left == due && leads()) mbarrier_arrive(barriers_.tile_due());
        }
      };
      take_next_when_due();
      for_each_query_tile<C::ordered>(args_.group, count, [&](int g, int i) {
        const int m = queries.at(i), head = kv_head * args_.group + g;
        load_q(n, batch, head, m);
        if (!has_v) load_v(item, key0, kv_head, batch);
        load_dy(n, batch, head, m);
        if (!k_first && !has_v) load_k(item, key0, kv_head, batch);
        has_v = true;
        ++n;
        --left;
        take_next_when_due();
      });
      if (!has_v) load_v(item, key0, kv_head, batch);  // the consumers wait for it
    }
  }

 private:
  static __device__ __forceinline__ bool leads() { return threadIdx.x % 32 == 0; }

  __device__ __forceinline__ void load_keys(const CUtensorMap& map, uint32_t full, int offset,
                                            int key0, int kv_head, int batch) const {
    mbarrier_arrive_expect(full, C::kv_bytes);
    copy_keys(map, full, offset, key0, kv_head, batch);
  }
  __device__ __forceinline__ void copy_keys(const CUtensorMap& map, uint32_t full, int offset,
                                            int key0, int kv_head, int batch) const {
#pragma unroll
    for (int i = 0; i < C::column_blocks; ++i)
      tma_load_4d(shared_ + offset + i * C::kv_block_bytes, &map, full, 64 * i, key0, kv_head,
                  batch, l2_evict_first());
  }
  __device__ __forceinline__ void load_k(uint32_t item, int key0, int kv_head, int batch) const {
    const int stage = stage_of<C::k_stages>(item);
    mbarrier_wait(barriers_.k_empty(stage), parity_of<C::k_stages>(item) ^ 1);
    if (leads()) {
      const uint32_t full = barriers_.k_full(stage);
      if constexpr (C::pair) {  // and the other block's
        mbarrier_expect(full, C::kv_bytes);
        copy_keys(args_.k, full, C::k_offset + C::kv_bytes, key0 ^ C::block_n, kv_head, batch);
      }
      load_keys(args_.k, full, C::k_offset + stage * C::kv_bytes, key0, kv_head, batch);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_v(uint32_t item, int key0, int kv_head, int batch) const {
    mbarrier_wait(barriers_.v_empty(), parity_of<1>(item) ^ 1);
    if (leads()) load_keys(args_.v, barriers_.v_full(), C::v_offset, key0, kv_head, batch);
    __syncwarp();
  }
  __device__ __forceinline__ void load_q(uint32_t n, int batch, int head, int m) const {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers_.q_empty(stage), parity_of<C::stages>(n) ^ 1);
    if (leads()) {
      const uint32_t full = barriers_.q_full(stage);
      mbarrier_arrive_expect(full, C::q_bytes + C::statistics_bytes);
      load_rows(args_.q, full, C::q_offset + stage * C::q_bytes, batch, head, m);
      const int64_t tile = int64_t{batch * args_.heads + head} * args_.query_tiles + m;
      tma_load_bytes(shared_ + C::statistics_offset + stage * C::statistics_bytes,
                     args_.statistics + tile * C::statistics_bytes, C::statistics_bytes, full,
                     l2_evict_last());
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_dy(uint32_t n, int batch, int head, int m) const {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers_.dy_empty(stage), parity_of<C::stages>(n) ^ 1);
    if (leads()) {
      const uint32_t full = barriers_.dy_full(stage);
      mbarrier_arrive_expect(full, C::q_bytes);
      load_rows(args_.dy, full, C::dy_offset + stage * C::q_bytes, batch, head, m);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_rows(const CUtensorMap& map, uint32_t full, int offset,
                                            int batch, int head, int m) const {
#pragma unroll
    for (int i = 0; i < C::column_blocks; ++i)
      tma_load_4d(shared_ + offset + i * C::q_block_bytes, &map, full, 64 * i, m * C::block_m, head,
                  batch, l2_evict_last());
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
};

}  // namespace baracuda::sm90::backward
