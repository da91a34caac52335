// The sm80 backward step: dK and dV of a key tile, and its additions to dQ, by mma.sync on tiles
// that cp.async loads.
//
// A block iterates over the query tiles that see its keys, in all query heads of the group. If
// Paired (config.h), the warps form two groups. Each warp has a partner in the other group that
// works on the same keys: one of the two computes S, P and dV, the other dP, dS and dK. The
// partners share P through shared memory, in float32.
//
// S and dP are computed transposed, with a row for each key. So the accumulators of P and dS become
// the A operands of dV and dK without leaving their registers. dS also goes to shared memory, and
// the warps compute dQ from it in the next iteration. If Paired, one group computes dQ while the
// other computes its exponentials.
#pragma once

#include "attention/backward/gradient_rows.cuh"
#include "attention/backward/sm80/block.cuh"
#include "attention/backward/sm80/dq.cuh"
#include "attention/backward/sm80/scores.cuh"
#include "common/cp_async.cuh"
#include "common/dependent_launch.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm80::backward {

template <typename C>
class Mainloop : Block<C> {
  using Element = typename C::Element;
  using Layout = typename C::Layout;
  using QCopy = TileCopy<C::head_dim, C::block_m, C::threads>;
  using KvCopy = TileCopy<C::head_dim, C::block_n, C::threads>;
  static constexpr int gradients = C::paired ? 1 : 2;
  using Block<C>::args;
  using Block<C>::batch;
  using Block<C>::first_key;
  using Block<C>::makes_dv;
  using Block<C>::rows_address;
  using Block<C>::shared;
  using Block<C>::tile;
  using Block<C>::turns;

 public:
  using Block<C>::Block;

  __device__ __forceinline__ void run() {
    load_keys();
    const int first_row = shared_load(rows_address());
    Sums<C> d[gradients];  // dK, then dV; if Paired, only the one that this warp computes
#pragma unroll
    for (int g = 0; g < gradients; ++g)
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
        for (int j = 0; j < C::head_dim / 8; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) d[g][i][j][c] = 0.0f;
    if (first_row < args.query_len) {
      if constexpr (C::ordered) {
        mainloop_ordered(d, first_row / 64);
      } else {
        mainloop(d, first_row / C::block_m);
      }
    } else {
      cp_async_wait<0>();
    }
    if constexpr (C::paired) {
      makes_dv() ? store(d[0], args.dv, args.dv_strides, 1.0f)
                 : store(d[0], args.dk, args.dk_strides, args.scale);
    } else {
      store(d[0], args.dk, args.dk_strides, args.scale);
      store(d[1], args.dv, args.dv_strides, 1.0f);
    }
  }

 private:
  template <typename Copy>
  static __device__ __forceinline__ int chunk() {
    if constexpr (C::ordered) return Block<C>::thread() % Layout::span;
    return Copy::chunk();
  }
  // Loads K and V of the key tile, and computes the first row that sees each key.
  __device__ __forceinline__ void load_keys() const {
    const int valid = args.key_len - tile.key0;
    load<KvCopy>(shared + C::k_offset, args.k, args.k_strides, tile.kv_head, tile.key0, valid);
    load<KvCopy>(shared + C::v_offset, args.v, args.v_strides, tile.kv_head, tile.key0, valid);
    if (C::shifts && threadIdx.x == 0)
      shared_store(shared + C::shift_offset, args.query_len > 0 ? shift_of(args.norms) : 0);
    for (int i = threadIdx.x; i < C::block_n; i += C::threads)
      shared_store(rows_address() + 4 * i, first_row_of(args, int64_t{tile.key0} + i));
    cp_async_commit();
    __syncthreads();
  }
  template <typename Copy>
  __device__ __forceinline__ void load(uint32_t to, const void* from,
                                       const baracuda_strides& strides, int head, int row,
                                       int valid) const {
    const char* source = static_cast<const char*>(from) +
                         (batch() * strides.batch + head * strides.head +
                          int64_t{row + Copy::last_row()} * strides.seq + chunk<Copy>() * 8) * 2;
    Copy::copy(to, source, strides.seq * 2 * Copy::rows_per_pass, valid);
  }
  // Loads Q, dO, lse and delta of query tile m of a head.
  __device__ __forceinline__ void load_queries(int stage, int head, int m) const {
    const int row = m * C::block_m, valid = args.query_len - row;
    load<QCopy>(shared + C::q_offset + stage * C::q_bytes, args.q, args.q_strides, head, row,
                valid);
    load<QCopy>(shared + C::dy_offset + stage * C::q_bytes, args.dy, args.dy_strides, head, row,
                valid);
    constexpr int pieces = C::block_m / 4;
    if (threadIdx.x < 2 * pieces) {
      const bool second = threadIdx.x >= pieces;
      const float* const from = second ? args.delta : args.lse;
      const int64_t index = int64_t{batch() * args.heads + head} * args.row_tiles * 64 + row;
      cp_async_or_zero<16>(
          shared + C::statistics_offset + stage * C::statistics_bytes + threadIdx.x * 16,
          from + index + threadIdx.x % pieces * 4, true);
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void mainloop(Sums<C> (&d)[gradients], int begin) {
    const int end = (args.query_len + C::block_m - 1) / C::block_m;
    int head = tile.kv_head * args.group, m = begin;
    const int last_head = head + args.group;
    int previous_head = 0, previous_m = -1;
    load_queries(0, head, m);
#pragma unroll 1
    for (int stage = 0; head < last_head; stage ^= 1) {
      int next_head = head, next_m = m + 1;
      if (next_m == end) {
        next_m = begin;
        ++next_head;
      }
      // After this barrier, the tile has arrived, and all warps have finished the previous tile
      // except for its dQ.
      cp_async_wait<0>();
      __syncthreads();
      const bool more = next_head < last_head;
      if (C::stages > 1 && more) load_queries(stage ^ 1, next_head, next_m);
      // If Paired, one group computes dQ here, while the other computes its exponentials.
      if (!(C::paired && makes_dv()) && previous_m >= 0)
        make_dq(*this, previous_head, previous_m, stage ^ 1);
      mainloop_step(d, m, stage, head);
      if (C::stages == 1 && more) {
        __syncthreads();
        load_queries(0, next_head, next_m);
      }
      if (C::paired && makes_dv() && previous_m >= 0)
        make_dq(*this, previous_head, previous_m, stage ^ 1);
      previous_head = head;
      previous_m = m;
      head = next_head;
      m = next_m;
      if (!more) {
        __syncthreads();
        make_dq(*this, previous_head, previous_m, stage);
      }
    }
  }

  // The mainloop of an ordered step. It takes a tile of 64 rows of every head of the group, then
  // the next tile of 64 rows; mainloop() takes all tiles of a head, then the next head. So two
  // blocks that start at different times stay the same number of query tiles apart. In the order of
  // mainloop(), a block with fewer query tiles would catch up with the other, and wait for turns.
  __device__ __forceinline__ void mainloop_ordered(Sums<C> (&d)[gradients], int begin) {
    Rows at{turns.kv_head() * args.group,
            (turns.descends() ? args.row_tiles - 1 : begin + turns.first()) * C::tile_parts};
    int left = (args.row_tiles - begin) * args.group * C::tile_parts;
    load_queries(0, at.head, at.m);
#pragma unroll 1
    for (int stage = 0; left > 0; stage ^= 1) {
      --left;
      cp_async_wait<0>();
      turns.await(stage ^ 1);
      __syncthreads();
      if (C::stages > 1 && left > 0) {
        const Rows next = rows_after(at);
        load_queries(stage ^ 1, next.head, next.m);
      }
      if (!(C::paired && makes_dv()) && turns.rows(stage ^ 1) >= 0) make_dq(*this, 0, 0, stage ^ 1);
      mainloop_step(d, at.m, stage, at.head);
      at = rows_after(at);  // computed again, since no register is free to keep `next`
      if (C::stages == 1 && left > 0) {
        __syncthreads();
        load_queries(0, at.head, at.m);
      }
      if (C::paired && makes_dv() && turns.rows(stage ^ 1) >= 0) make_dq(*this, 0, 0, stage ^ 1);
      if (left == 0) {
        turns.await(stage);
        __syncthreads();
        turns.pass(stage ^ 1);
        make_dq(*this, 0, 0, stage);
        __syncthreads();
        turns.pass(stage);
      }
    }
  }
  struct Rows {
    int head, m;
  };
  __device__ __forceinline__ Rows rows_after(Rows at) const {
    if (++at.m % C::tile_parts != 0) return at;
    at.m -= C::tile_parts;
    if (++at.head == (turns.kv_head() + 1) * args.group) {
      at.head -= args.group;
      at.m += turns.descends() ? -C::tile_parts : C::tile_parts;
      // After the last tile comes tile 0, since the block may have begun later (turns.first()).
      if (at.m == args.row_tiles * C::tile_parts) at.m = 0;
    }
    return at;
  }
  // See Turns::take_and_pass().
  __device__ __forceinline__ void take_and_pass_turns(int stage, int head, int m) const {
    if constexpr (C::ordered) turns.take_and_pass(stage, head, m);
  }

  // Processes query tile m of a head.
  __device__ __forceinline__ void mainloop_step(Sums<C> (&d)[gradients], int m, int stage,
                                                int head) {
    const int q_stage = C::stages > 1 ? stage : 0;
    const uint32_t q_tile = shared + C::q_offset + q_stage * C::q_bytes;
    const uint32_t dy_tile = shared + C::dy_offset + q_stage * C::q_bytes;
    const uint32_t statistics = shared + C::statistics_offset + q_stage * C::statistics_bytes;
    // A row that sees the last key of the tile sees all keys of the tile. Query tiles that begin
    // before the first such row need the mask.
    const bool masked = m * C::block_m < shared_load(rows_address() + 4 * (C::block_n - 1));
    if constexpr (C::paired) {
      Scores<C> s;
      compute_scores(*this, s, shared + (makes_dv() ? C::k_offset : C::v_offset),
                     makes_dv() ? q_tile : dy_tile);
      if (makes_dv()) {
        compute_p(*this, s, statistics);
        if (masked) apply_mask(*this, s, m * C::block_m);
        send_p(*this, s);
      } else {
        receive_p(*this, s, statistics);
        if (masked) apply_mask(*this, s, m * C::block_m);
      }
      Fragments<C> a;
      pack<C>(s, a);
      if (!makes_dv()) store_ds(*this, a, stage, 0);
      take_and_pass_turns(stage, head, m);
      update<C>(d[0], a, makes_dv() ? dy_tile : q_tile);
    } else {
      take_and_pass_turns(stage, head, m);
#pragma unroll
      for (int part = 0; part < C::block_m / C::score_m; ++part) {
        const int row = part * C::score_m;
        const uint32_t queries = q_tile + row * Layout::bytes, dy = dy_tile + row * Layout::bytes;
        Scores<C> s, dp;
        Fragments<C> a;
        compute_scores(*this, s, shared + C::k_offset, queries);
        compute_scores(*this, dp, shared + C::v_offset, dy);
        compute_p(*this, s, statistics + 4 * row);
        if (masked) apply_mask(*this, s, m * C::block_m + row);
        pack<C>(s, a);
        update<C>(d[1], a, dy);
        compute_ds<C>(dp, s, statistics + 4 * row);
        if (masked) apply_mask(*this, dp, m * C::block_m + row);
        pack<C>(dp, a);
        store_ds(*this, a, stage, row / 8);
        update<C>(d[0], a, queries);
      }
    }
  }

  __device__ __forceinline__ void store(Sums<C>& d, void* to, const baracuda_strides& strides,
                                        float factor) const {
    const KeyTile own = this->key_tile();
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i) {
      const GradientRows<Element, C::head_dim> rows(own.batch, own.kv_head,
                                                    own.key0 + first_key() + 16 * i,
                                                    args.key_len, args.gradients_f32);
      rows.store(to, strides, reinterpret_cast<float(&)[C::head_dim / 2]>(d[i]),
                 factor * this->unshift());
    }
  }
};

template <typename C>
__global__ void __launch_bounds__(C::threads, C::blocks_per_sm)
    step_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) char shared[];
  launch_dependent_grids();
  await_previous_grids();
  Mainloop<C>(args, shared).run();
}

}  // namespace baracuda::sm80::backward
