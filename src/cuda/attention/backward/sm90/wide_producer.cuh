// The producer warps of the sm90a backward kernel at head_dim 256.
#pragma once

#include "attention/backward/sm90/producer.cuh"
#include "attention/backward/sm90/wide_barriers.cuh"

namespace baracuda::sm90::backward {

// Half of the columns of a query tile of dQ, and the turn at it: the i-th query tile of a key tile
// in the g-th head of its group. Read again each time, since registers are scarce.
template <typename C>
class HalfTile {
 public:
  __device__ __forceinline__ HalfTile(const Args& args, const WorkTile<C>& slot, int g, int i)
      : m_(QueryTiles{slot.begin(), slot.step()}.at(i)),
        tile_(slot.first_tile() + g * args.query_tiles + m_),
        turn_{slot.place(), slot.next_begin(), !args.borders_vary || slot.step() < 0} {}

  __device__ __forceinline__ bool await(const Args& args) const {
    return await_turn(word(args), turn_, m_);
  }
  __device__ __forceinline__ void pass(const Args& args) const {
    pass_turn(word(args), turn_, m_);
  }
  __device__ __forceinline__ float* sums(const Args& args) const {
    return args.dq + int64_t{2 * tile_ + cluster_rank()} * (C::dq_floats / 2);
  }

 private:
  __device__ __forceinline__ uint32_t* word(const Args& args) const {
    return args.turns + cluster_rank() * args.dq_words + tile_;
  }

  const int m_, tile_;
  const KeyTileTurn turn_;
};

// Adds this block's half of dQ, with every addition in its turn. Two warps alternate between query
// tiles, with one lane each. A turn is passed only when the addition is complete; meanwhile the
// other warp adds the next query tile.
template <typename E, bool M>
__device__ __forceinline__ void add_dq_in_turn(const Args& args, uint32_t shared,
                                               const Barriers<WideConfig<E, M, true>>& barriers,
                                               uint32_t adder) {
  using C = WideConfig<E, M, true>;
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
      if (n++ % 2 != adder) return;
      const bool is_first = HalfTile<C>(args, slot, g, i).await(args);
      float* to = HalfTile<C>(args, slot, g, i).sums(args);
#pragma unroll 1
      for (int piece = 0; piece < C::pieces_of_half; ++piece) {
        const int buffer = piece % C::dq_pieces;
        const uint32_t from = shared + C::dq_offset + buffer * C::dq_piece_bytes;
        mbarrier_wait(barriers.dq_ready(adder, buffer), piece / C::dq_pieces & 1);
        if (is_first) {
          tma_store_bytes(to, from, C::dq_piece_bytes);
        } else {
          tma_add_bytes(to, from, C::dq_piece_bytes);
        }
        tma_commit();
        to += C::dq_piece_bytes / 4;
        if (piece == 0) continue;
        tma_wait_read<1>();
        mbarrier_arrive(barriers.dq_read((piece - 1) % C::dq_pieces));
      }
      tma_wait_read<0>();
      mbarrier_arrive(barriers.dq_read((C::pieces_of_half - 1) % C::dq_pieces));
      tma_wait<0>();
      HalfTile<C>(args, slot, g, i).pass(args);
    });
    mbarrier_arrive(barriers.slot_empty(stage));
  }
}

template <typename E, bool M, bool O>
class Producer<WideConfig<E, M, O>> {
  using C = WideConfig<E, M, O>;

 public:
  __device__ __forceinline__ Producer(const Args& args, uint32_t shared,
                                      const Barriers<C>& barriers)
      : args_(args), shared_(shared), barriers_(barriers), rank_(cluster_rank()) {}

  __device__ __forceinline__ void run() {
    uint32_t n = 0, key_tiles = 0;
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
      int left = count * args_.group;
      const int due = left < C::lead ? left : C::lead;
      const auto take_next_when_due = [&] {
        if constexpr (C::ordered) {
          if (left == due && leads()) mbarrier_arrive(barriers_.tile_due());
        }
      };
      take_next_when_due();
      if (count == 0) continue;
      bool has_keys = false;
      for_each_query_tile<C::ordered>(args_.group, count, [&](int g, int i) {
        const int m = queries.at(i), head = kv_head * args_.group + g;
        load_q(n, batch, head, m);
        if (!has_keys) load_v(key_tiles, key0, kv_head, batch);
        load_dy(n, batch, head, m);
        if (!has_keys) load_k(key_tiles, key0, kv_head, batch);
        has_keys = true;
        ++n;
        --left;
        take_next_when_due();
      });
      ++key_tiles;
    }
  }

 private:
  static __device__ __forceinline__ bool leads() { return threadIdx.x % 32 == 0; }

  __device__ __forceinline__ void copy_keys(const CUtensorMap& map, uint32_t full, int offset,
                                            int first_block, int blocks, int key0, int kv_head,
                                            int batch) const {
#pragma unroll
    for (int i = 0; i < blocks; ++i)
      tma_load_4d(shared_ + offset + i * C::block_bytes, &map, full, 64 * (first_block + i), key0,
                  kv_head, batch, l2_evict_first());
  }
  __device__ __forceinline__ void load_k(uint32_t n, int key0, int kv_head, int batch) const {
    mbarrier_wait(barriers_.k_empty(), parity_of<1>(n) ^ 1);
    if (leads()) {
      const uint32_t full = barriers_.k_full();
      mbarrier_arrive_expect(full, C::tile_bytes + C::half_bytes);
      copy_keys(args_.k, full, C::k_offset, 0, C::column_blocks, key0, kv_head, batch);
      constexpr int half = C::column_blocks / 2;
      copy_keys(args_.k, full, C::remote_k_offset, rank_ * half, half, key0 ^ C::block_n, kv_head,
                batch);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_v(uint32_t n, int key0, int kv_head, int batch) const {
    mbarrier_wait(barriers_.v_empty(), parity_of<1>(n) ^ 1);
    if (leads()) {
      mbarrier_arrive_expect(barriers_.v_full(), C::tile_bytes);
      copy_keys(args_.v, barriers_.v_full(), C::v_offset, 0, C::column_blocks, key0, kv_head,
                batch);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_q(uint32_t n, int batch, int head, int m) const {
    const int stage = stage_of<C::stages>(n);
    mbarrier_wait(barriers_.q_empty(stage), parity_of<C::stages>(n) ^ 1);
    if (leads()) {
      const uint32_t full = barriers_.q_full(stage);
      mbarrier_arrive_expect(full, C::tile_bytes + C::statistics_bytes);
      load_rows(args_.q, full, C::q_offset + stage * C::tile_bytes, batch, head, m);
      const int64_t tile = int64_t{batch * args_.heads + head} * args_.query_tiles + m;
      tma_load_bytes(shared_ + C::statistics_offset + stage * C::statistics_bytes,
                     args_.statistics + tile * C::statistics_bytes, C::statistics_bytes, full,
                     l2_evict_last());
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_dy(uint32_t n, int batch, int head, int m) const {
    mbarrier_wait(barriers_.dy_empty(), parity_of<1>(n) ^ 1);
    if (leads()) {
      mbarrier_arrive_expect(barriers_.dy_full(), C::tile_bytes);
      load_rows(args_.dy, barriers_.dy_full(), C::dy_offset, batch, head, m);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_rows(const CUtensorMap& map, uint32_t full, int offset,
                                            int batch, int head, int m) const {
    if constexpr (C::multicast) {
#pragma unroll
      for (int i = 0; i < C::column_blocks / 2; ++i) {
        const int block = rank_ * (C::column_blocks / 2) + i;
        tma_load_4d_to_pair(shared_ + offset + block * C::block_bytes, &map, full, 64 * block,
                            m * C::block_m, head, batch, l2_evict_last());
      }
    } else {
#pragma unroll
      for (int i = 0; i < C::column_blocks; ++i)
        tma_load_4d(shared_ + offset + i * C::block_bytes, &map, full, 64 * i, m * C::block_m,
                    head, batch, l2_evict_last());
    }
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int rank_;
};

}  // namespace baracuda::sm90::backward
