// A consumer warpgroup of the sm90a backward kernel: 64 keys at a time.
//
// S and dP are computed transposed, with a row for each key. P and dS then go from the accumulators
// to the A operands of dV and dK in registers, and the mask of a key takes two registers.
#pragma once

#include "attention/backward/gradient_rows.cuh"
#include "attention/backward/shift.cuh"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/dq_maker.cuh"
#include "attention/backward/sm90/key_tiles.cuh"
#include "attention/backward/sm90/scores.cuh"
#include "common/dtype.cuh"
#include "common/uniform.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class Consumer {
  using Element = typename C::Element;
  static constexpr int scores = C::block_m / 2;   // accumulators of S and of dP
  static constexpr int columns = C::head_dim / 2;  // of dK and of dV
  static constexpr int steps = C::block_m / 16;

 public:
  __device__ __forceinline__ Consumer(const Args& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : args_(args),
        shared_(shared),
        barriers_(barriers),
        group_(group),
        dq_(args, shared, barriers, group) {
    if constexpr (C::shifts)
      shift_ = args.query_tiles > 0 ? static_cast<float>(shift_of(args.norms)) : 0.0f;
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      const int stage = stage_of<C::stages>(item);
      mbarrier_wait(barriers_.slot_full(stage), parity_of<C::stages>(item));
      const WorkTile<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) return dq_.compute_last_dq(shift_);
      float dk[columns], dv[columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) dk[i] = dv[i] = 0.0f;
      k_stage_ = stage_of<C::k_stages>(item);
      read_first_rows();
      mbarrier_wait(barriers_.k_full(k_stage_), parity_of<C::k_stages>(item));
      mbarrier_wait(barriers_.v_full(), parity_of<1>(item));
      if constexpr (C::ahead) {
        HeldKeys held;
        load_keys(held.k, k_keys());
        load_keys(held.v, v_keys());
        __syncwarp();
        release(barriers_.v_empty());
        if (count > 0) mainloop_ahead(dk, dv, held, slot, count);
      } else {
        if (count > 0) mainloop(dk, dv, slot, count);
        release(barriers_.v_empty());
      }
      const GradientRows<Element, C::head_dim> rows(
          slot.batch(), slot.kv_head(),
          slot.key0() + group_ * C::group_n + threadIdx.x % 128 / 32 * 16, args_.key_len,
          args_.gradients_f32);
      __syncwarp();
      release(barriers_.slot_empty(stage));
      // With two buffers of K, the last dQ is computed in the next key tile.
      if (C::k_stages == 1 || count == 0) dq_.compute_last_dq(shift_);
      if (count == 0) release(barriers_.k_empty(k_stage_));
      rows.store(args_.dk, args_.dk_strides, dk, args_.scale * unshift());
      rows.store(args_.dv, args_.dv_strides, dv, unshift());
    }
  }

 private:
  // A operands of S and dP, for configurations that keep them in registers for a whole key tile.
  struct HeldKeys {
    uint32_t k[steps][4], v[steps][4];
  };

  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }

  __device__ __forceinline__ void read_first_rows() {
    const FirstRows<C> rows(shared_, 0);
    const int key = group_ * C::group_n + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    first_row_[0] = rows.get(key) - 2 * (threadIdx.x % 4);
    first_row_[1] = rows.get(key + 8) - 2 * (threadIdx.x % 4);
    group_first_row_ = uniform(rows.get(group_ * C::group_n));
    __syncwarp();
    release(barriers_.first_rows_empty());
  }
  __device__ __forceinline__ QuerySequence<C::ordered> sequence_of(const WorkTile<C>& slot,
                                                                   int count) const {
    const int head0 = uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
    return {{uniform(slot.begin()), uniform(slot.step())}, args_.group, count,
            head0 * args_.query_tiles, args_.query_tiles};
  }
  // True if no row of a head's m-th query tile sees a key of this warpgroup.
  __device__ __forceinline__ bool is_hidden(int m) const {
    return (m + 1) * C::block_m <= group_first_row_;
  }

  __device__ __forceinline__ void mainloop(float (&dk)[columns], float (&dv)[columns],
                                           const WorkTile<C>& slot, int count) {
    const int first_unmasked_row = uniform(slot.first_unmasked_row());
#pragma unroll 1
    for (auto queries = sequence_of(slot, count); queries.more(); queries.advance()) {
      const int m = queries.tile();
      if (is_hidden(m)) {
        skip_query_tile();
      } else {
        mainloop_step(dk, dv, m, m * C::block_m < first_unmasked_row);
      }
      dq_.advance_to(queries.tile_of_all(), k_stage_);
    }
  }

  // Processes the next query tile, the m-th of its head. masked: some rows do not see all keys of
  // the tile, because of a mask or because the key tile is not full. (A second loop without masks
  // would spill registers.)
  __device__ __forceinline__ void mainloop_step(float (&dk)[columns], float (&dv)[columns], int m,
                                                bool masked) {
    float s[scores], dp[scores];
    uint32_t p[steps][4], ds[steps][4];
    const int stage = stage_of<C::stages>(dq_.count());
    const uint32_t parity = parity_of<C::stages>(dq_.count());
    mbarrier_wait(barriers_.q_full(stage), parity);
    pin_registers(s);
    pin_registers(dp);
    uint32_t ones[4], delta_ones[4];
    make_ones(ones, delta_ones);
    wgmma_fence();
    issue_scores<C>(s, k_keys(), q_tile(stage), ones, statistics(stage));
    mbarrier_wait(barriers_.dy_full(stage), parity);
    wgmma_fence();
    issue_scores<C>(dp, v_keys(), dy_tile(stage), delta_ones, deltas(stage));
    wgmma_wait<1>();
    pin_registers(s);
    const int left[2] = {first_row_[0] - m * C::block_m, first_row_[1] - m * C::block_m};
    compute_p<C>(s, s, args_.scale_log2, shift_);
    if (masked) apply_mask(s, left);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(s, k, p[k]);
    pin_registers(dv);
    wgmma_fence();
    issue_update<C>(dv, p, dy_tile(stage));
    wgmma_wait<1>();
    pin_registers(dp);
    compute_ds(dp, s);
    if (masked) apply_mask(dp, left);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(dp, k, ds[k]);
    pin_registers(dk);
    wgmma_fence();
    issue_update<C>(dk, ds, q_tile(stage));
    dq_.publish_ds(ds);
    const bool makes_dq = dq_.owns_previous_dq();
    if (makes_dq) dq_.await_previous_ds();
    wgmma_wait<1>();
    pin_registers(dv);
    release(barriers_.dy_empty(stage));
    if (makes_dq) {
      dq_.compute_previous_dq(shift_, [&] { release(barriers_.q_empty(stage)); });
    } else {
      wgmma_wait<0>();
      release(barriers_.q_empty(stage));
    }
    pin_registers(dk);
  }

  // The mainloop that issues S of a query tile before the products of the previous one are done.
  __device__ __forceinline__ void mainloop_ahead(float (&dk)[columns], float (&dv)[columns],
                                                 const HeldKeys& held, const WorkTile<C>& slot,
                                                 int count) {
    const int first_unmasked_row = uniform(slot.first_unmasked_row());
    auto queries = sequence_of(slot, count);
#pragma unroll 1
    while (queries.more()) {
      if (is_hidden(queries.tile())) {
        skip_query_tile();
        dq_.advance_to(queries.tile_of_all(), k_stage_);
        queries.advance();
      } else {
        mainloop_run_ahead(dk, dv, held, queries, first_unmasked_row);
      }
    }
  }

  // Processes query tiles up to the next fully masked one.
  __device__ __forceinline__ void mainloop_run_ahead(float (&dk)[columns], float (&dv)[columns],
                                                     const HeldKeys& held,
                                                     QuerySequence<C::ordered>& queries,
                                                     int first_unmasked_row) {
    float s[scores];
    const int first = stage_of<C::stages>(dq_.count());
    mbarrier_wait(barriers_.q_full(first), parity_of<C::stages>(dq_.count()));
    issue_s(s, held, first);
    wgmma_wait<0>();
    pin_registers(s);
    bool more = true;
#pragma unroll 1
    while (more) {
      float dp[scores], weights[scores];
      uint32_t p[steps][4], ds[steps][4];
      uint32_t n = dq_.count();
      const int stage = stage_of<C::stages>(n);
      const int m = queries.tile(), tile = queries.tile_of_all();
      const bool masked = m * C::block_m < first_unmasked_row;
      const int left[2] = {first_row_[0] - m * C::block_m, first_row_[1] - m * C::block_m};
      queries.advance();
      more = queries.more() && !is_hidden(queries.tile());
      mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(n));
      issue_dp(dp, held, stage);
      compute_p<C>(weights, s, args_.scale_log2, shift_);
      if (masked) apply_mask(weights, left);
#pragma unroll
      for (int k = 0; k < steps; ++k) pack<Element>(weights, k, p[k]);
      pin_registers(dv);
      wgmma_fence();
      issue_update<C>(dv, p, dy_tile(stage));
      // The last tile of a run is also its next tile, since a branch around products would
      // serialise them.
      if (more) ++n;
      const int next = stage_of<C::stages>(n);
      mbarrier_wait(barriers_.q_full(next), parity_of<C::stages>(n));
      issue_s(s, held, next);
      wgmma_wait<2>();
      pin_registers(dp);
      compute_ds(dp, weights);
      if (masked) apply_mask(dp, left);
#pragma unroll
      for (int k = 0; k < steps; ++k) pack<Element>(dp, k, ds[k]);
      pin_registers(dk);
      wgmma_fence();
      issue_update<C>(dk, ds, q_tile(stage));
      dq_.publish_ds(ds);
      const auto after_dk = [&] {
        release(barriers_.dy_empty(stage));
        release(barriers_.q_empty(stage));
      };
      if (dq_.owns_previous_dq()) {
        dq_.await_previous_ds();
        dq_.compute_previous_dq(shift_, after_dk);
      } else {
        wgmma_wait<0>();
        after_dk();
      }
      pin_registers(dk);
      pin_registers(dv);
      pin_registers(s);
      dq_.advance_to(tile, k_stage_);
    }
  }

  __device__ __forceinline__ void issue_s(float (&s)[scores], const HeldKeys& held,
                                          int stage) const {
    uint32_t ones[4], delta_ones[4];
    make_ones(ones, delta_ones);
    pin_registers(s);
    wgmma_fence();
    issue_scores<C>(s, held.k, q_tile(stage), ones, statistics(stage));
  }
  __device__ __forceinline__ void issue_dp(float (&dp)[scores], const HeldKeys& held,
                                           int stage) const {
    uint32_t ones[4], delta_ones[4];
    make_ones(ones, delta_ones);
    pin_registers(dp);
    wgmma_fence();
    issue_scores<C>(dp, held.v, dy_tile(stage), delta_ones, deltas(stage));
  }

  // A fragments with ones in the columns that hold a row's lse (ones) or its delta (delta_ones).
  static __device__ __forceinline__ void make_ones(uint32_t (&ones)[4], uint32_t (&delta_ones)[4]) {
    if constexpr (C::apart) {
      ones[0] = ones[1] = delta_ones[0] = delta_ones[1] = 0x3f803f80u;
      ones[2] = ones[3] = delta_ones[2] = delta_ones[3] = 0;
      return;
    }
    // Volatile, so that the fragments are recomputed: keeping them would take too many registers.
    uint32_t pair;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(pair));
    pair %= 4;
    const uint32_t parts = pair % 2 == 0 ? 0x3f803f80u : 0x3f80u;
    ones[0] = ones[1] = pair < 2 ? parts : 0;
    delta_ones[0] = delta_ones[1] = pair < 2 ? 0 : parts;
    ones[2] = ones[3] = delta_ones[2] = delta_ones[3] = 0;
    pin_registers(ones);
    pin_registers(delta_ones);
  }

  // Skips the next query tile, which is fully masked.
  __device__ __forceinline__ void skip_query_tile() {
    uint32_t ds[steps][4];
#pragma unroll
    for (int k = 0; k < steps; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) ds[k][i] = 0;
    const int stage = stage_of<C::stages>(dq_.count());
    mbarrier_wait(barriers_.q_full(stage), parity_of<C::stages>(dq_.count()));
    mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(dq_.count()));
    release(barriers_.q_empty(stage));
    release(barriers_.dy_empty(stage));
    dq_.publish_ds(ds);
    dq_.compute_previous_dq_if_owned(shift_);
  }

  __device__ __forceinline__ float unshift() const { return unshift_of<C>(shift_); }

  static __device__ __forceinline__ void compute_ds(float (&dp)[scores], const float (&p)[scores]) {
#pragma unroll
    for (int i = 0; i < scores; ++i) dp[i] *= p[i];
  }

  // This warpgroup's keys of K and V, and the pipeline stages of query tiles.
  __device__ __forceinline__ uint32_t k_keys() const {
    return shared_ + C::k_offset + k_stage_ * C::kv_bytes + group_ * C::group_n * 128;
  }
  __device__ __forceinline__ uint32_t v_keys() const {
    return shared_ + C::v_offset + group_ * C::group_n * 128;
  }
  __device__ __forceinline__ uint32_t q_tile(int stage) const {
    return shared_ + C::q_offset + stage * C::q_bytes;
  }
  __device__ __forceinline__ uint32_t dy_tile(int stage) const {
    return shared_ + C::dy_offset + stage * C::q_bytes;
  }
  __device__ __forceinline__ uint32_t statistics(int stage) const {
    return shared_ + C::statistics_offset + stage * C::statistics_bytes;
  }
  __device__ __forceinline__ uint32_t deltas(int stage) const {
    return statistics(stage) + (C::apart ? C::statistics_bytes / 2 : 0);
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
  DqMaker<C> dq_;
  float shift_;  // of P, see shift.cuh; an integer
  int k_stage_;
  int first_row_[2];     // the first rows that see this thread's keys, less its first column
  int group_first_row_;  // the first row that sees the warpgroup's first key
};

}  // namespace baracuda::sm90::backward
