// The computing side of the sm90a backward kernel: a warpgroup with 64 keys at a time.
//
// S and dP are made transposed, a row for each key: P and dS then go from the accumulators to the A
// operands of dV and dK without leaving registers, and what a key's mask is stays in two registers.
#pragma once

#include "attention/backward/gradient_rows.cuh"
#include "attention/backward/shift.cuh"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/dq_maker.cuh"
#include "attention/backward/sm90/schedule.cuh"
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
      const Slot<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) return dq_.make_last(shift_);
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
        if (count > 0) go_over_runs(dk, dv, held, slot, count);
      } else {
        if (count > 0) go_over_queries(dk, dv, slot, count);
        release(barriers_.v_empty());
      }
      const GradientRows<Element, C::head_dim> rows(
          slot.batch(), slot.kv_head(),
          slot.key0() + group_ * C::group_n + threadIdx.x % 128 / 32 * 16, args_.key_len,
          args_.gradients_f32);
      __syncwarp();
      release(barriers_.slot_empty(stage));
      // With two buffers of K the last dQ waits for the next key tile's first.
      if (C::k_stages == 1 || count == 0) dq_.make_last(shift_);
      if (count == 0) release(barriers_.k_empty(k_stage_));
      rows.store(args_.dk, args_.dk_strides, dk, args_.scale * unshift());
      rows.store(args_.dv, args_.dv_strides, dv, unshift());
    }
  }

 private:
  // A operands of S and dP, where they stay in registers while a key tile is at work.
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
    release(barriers_.rows_taken());
  }
  __device__ __forceinline__ QuerySequence<C::ordered> sequence_of(const Slot<C>& slot,
                                                                   int count) const {
    const int head0 = uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
    return {{uniform(slot.begin()), uniform(slot.step())}, args_.group, count,
            head0 * args_.query_tiles, args_.query_tiles};
  }
  // Whether no row of a head's m-th query tile sees a key of this warpgroup.
  __device__ __forceinline__ bool is_hidden(int m) const {
    return (m + 1) * C::block_m <= group_first_row_;
  }

  __device__ __forceinline__ void go_over_queries(float (&dk)[columns], float (&dv)[columns],
                                                  const Slot<C>& slot, int count) {
    const int whole_from = uniform(slot.whole_from());
#pragma unroll 1
    for (auto queries = sequence_of(slot, count); queries.more(); queries.advance()) {
      const int m = queries.tile();
      if (is_hidden(m)) {
        pass_by();
      } else {
        fold(dk, dv, m, m * C::block_m < whole_from);
      }
      dq_.look_back_at(queries.tile_of_all(), k_stage_);
    }
  }

  // Takes in the next query tile, m of its head. Only under a mask, or where
  // the tile has fewer keys than it has room for, are there rows that do not see all of it. (Two
  // loops, one of them without masks, are more than ptxas has registers for.)
  __device__ __forceinline__ void fold(float (&dk)[columns], float (&dv)[columns], int m,
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
    take_weights<C>(s, s, args_.scale_log2, shift_);
    if (masked) hide(s, left);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(s, k, p[k]);
    pin_registers(dv);
    wgmma_fence();
    issue_update<C>(dv, p, dy_tile(stage));
    wgmma_wait<1>();
    pin_registers(dp);
    take_gradients(dp, s);
    if (masked) hide(dp, left);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(dp, k, ds[k]);
    pin_registers(dk);
    wgmma_fence();
    issue_update<C>(dk, ds, q_tile(stage));
    dq_.hand_over(ds);
    const bool makes_dq = dq_.makes_before();
    if (makes_dq) dq_.await_before();
    wgmma_wait<1>();
    pin_registers(dv);
    release(barriers_.dy_empty(stage));
    if (makes_dq) {
      dq_.make_before(shift_, [&] { release(barriers_.q_empty(stage)); });
    } else {
      wgmma_wait<0>();
      release(barriers_.q_empty(stage));
    }
    pin_registers(dk);
  }

  // The same where S of a query tile is begun before the products of the one before it are done.
  __device__ __forceinline__ void go_over_runs(float (&dk)[columns], float (&dv)[columns],
                                               const HeldKeys& held, const Slot<C>& slot,
                                               int count) {
    const int whole_from = uniform(slot.whole_from());
    auto queries = sequence_of(slot, count);
#pragma unroll 1
    while (queries.more()) {
      if (is_hidden(queries.tile())) {
        pass_by();
        dq_.look_back_at(queries.tile_of_all(), k_stage_);
        queries.advance();
      } else {
        fold_run(dk, dv, held, queries, whole_from);
      }
    }
  }

  // Takes in query tiles up to the next that is hidden.
  __device__ __forceinline__ void fold_run(float (&dk)[columns], float (&dv)[columns],
                                           const HeldKeys& held,
                                           QuerySequence<C::ordered>& queries, int whole_from) {
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
      const bool masked = m * C::block_m < whole_from;
      const int left[2] = {first_row_[0] - m * C::block_m, first_row_[1] - m * C::block_m};
      queries.advance();
      more = queries.more() && !is_hidden(queries.tile());
      mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(n));
      issue_dp(dp, held, stage);
      take_weights<C>(weights, s, args_.scale_log2, shift_);
      if (masked) hide(weights, left);
#pragma unroll
      for (int k = 0; k < steps; ++k) pack<Element>(weights, k, p[k]);
      pin_registers(dv);
      wgmma_fence();
      issue_update<C>(dv, p, dy_tile(stage));
      // A run's last tile has itself as the next one: a branch around products serialises them.
      if (more) ++n;
      const int next = stage_of<C::stages>(n);
      mbarrier_wait(barriers_.q_full(next), parity_of<C::stages>(n));
      issue_s(s, held, next);
      wgmma_wait<2>();
      pin_registers(dp);
      take_gradients(dp, weights);
      if (masked) hide(dp, left);
#pragma unroll
      for (int k = 0; k < steps; ++k) pack<Element>(dp, k, ds[k]);
      pin_registers(dk);
      wgmma_fence();
      issue_update<C>(dk, ds, q_tile(stage));
      dq_.hand_over(ds);
      const auto after_dk = [&] {
        release(barriers_.dy_empty(stage));
        release(barriers_.q_empty(stage));
      };
      if (dq_.makes_before()) {
        dq_.await_before();
        dq_.make_before(shift_, after_dk);
      } else {
        wgmma_wait<0>();
        after_dk();
      }
      pin_registers(dk);
      pin_registers(dv);
      pin_registers(s);
      dq_.look_back_at(tile, k_stage_);
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

  // A fragments of ones in the columns that hold a row's lse, and its delta.
  static __device__ __forceinline__ void make_ones(uint32_t (&ones)[4], uint32_t (&delta_ones)[4]) {
    if constexpr (C::apart) {
      ones[0] = ones[1] = delta_ones[0] = delta_ones[1] = 0x3f803f80u;
      ones[2] = ones[3] = delta_ones[2] = delta_ones[3] = 0;
      return;
    }
    // Volatile: kept from tile to tile the fragments are more than there is room for.
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

  // The next query tile, which is hidden.
  __device__ __forceinline__ void pass_by() {
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
    dq_.hand_over(ds);
    dq_.make_any_before(shift_);
  }

  __device__ __forceinline__ float unshift() const { return unshift_of<C>(shift_); }

  static __device__ __forceinline__ void take_gradients(float (&dp)[scores],
                                                        const float (&p)[scores]) {
#pragma unroll
    for (int i = 0; i < scores; ++i) dp[i] *= p[i];
  }

  // This warpgroup's keys of K and V, and a stage of what is known of query rows.
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
  float shift_;         // a whole number
  int k_stage_;
  int first_row_[2];    // that see this thread's keys, less its first column
  int group_first_row_;  // that sees the warpgroup's first key
};

}  // namespace baracuda::sm90::backward
