// The computing side of the sm90a backward kernel where a warpgroup has two tiles of 64 keys, the
// halves of its keys: dQ of a query tile is added for twice as many keys, and Q and dO are read for
// as many. The operands of dV and of dK take turns in one set of registers: there is no second.
#pragma once

#include "attention/backward/gradient_rows.cuh"
#include "attention/backward/shift.cuh"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/dq_maker.cuh"
#include "attention/backward/sm90/key_tiles.cuh"
#include "attention/backward/sm90/scores.cuh"
#include "common/uniform.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class DoubleConsumer {
  using Element = typename C::Element;
  static constexpr int scores = C::block_m / 2;    // accumulators of S and of dP
  static constexpr int columns = C::head_dim / 2;  // of dK and of dV
  static constexpr int steps = C::block_m / 16;

 public:
  __device__ __forceinline__ DoubleConsumer(const Args& args, uint32_t shared,
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
      float dk[2][columns], dv[2][columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) dk[0][i] = dk[1][i] = dv[0][i] = dv[1][i] = 0.0f;
      k_stage_ = stage_of<C::k_stages>(item);
      group_first_row_ = uniform(FirstRows<C>(shared_, item).get(group_ * C::group_n));
      mbarrier_wait(barriers_.k_full(k_stage_), parity_of<C::k_stages>(item));
      mbarrier_wait(barriers_.v_full(), parity_of<1>(item));
      if (count > 0) mainloop_ahead(dk, dv, slot, count, item);
      release(barriers_.v_empty());
      const int key0 = slot.key0() + group_ * C::group_n + threadIdx.x % 128 / 32 * 16;
      const int batch = slot.batch(), kv_head = slot.kv_head();
      __syncwarp();
      release(barriers_.slot_empty(stage));
      // With two buffers of K the last dQ waits for the next key tile's first.
      if (C::k_stages == 1 || count == 0) dq_.compute_last_dq(shift_);
      if (count == 0) release(barriers_.k_empty(k_stage_));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const GradientRows<Element, C::head_dim> rows(batch, kv_head, key0 + half * C::half_n,
                                                      args_.key_len, args_.gradients_f32);
        rows.store(args_.dk, args_.dk_strides, dk[half], args_.scale * unshift_of<C>(shift_));
        rows.store(args_.dv, args_.dv_strides, dv[half], unshift_of<C>(shift_));
      }
    }
  }

 private:
  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }

  // Whether no row of a head's m-th query tile sees a key of this warpgroup.
  __device__ __forceinline__ bool is_hidden(int m) const {
    return (m + 1) * C::block_m <= group_first_row_;
  }

  __device__ __forceinline__ void mainloop_ahead(float (&dk)[2][columns], float (&dv)[2][columns],
                                                 const WorkTile<C>& slot, int count,
                                                 uint32_t item) {
    const int head0 = uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
    QuerySequence<C::ordered> queries{{uniform(slot.begin()), uniform(slot.step())}, args_.group,
                                      count, head0 * args_.query_tiles, args_.query_tiles};
    const int first_unmasked_row = uniform(slot.first_unmasked_row());
#pragma unroll 1
    while (queries.more()) {
      if (is_hidden(queries.tile())) {
        skip_query_tile();
        dq_.advance_to(queries.tile_of_all(), k_stage_);
        queries.advance();
      } else {
        mainloop_run_ahead(dk, dv, queries, first_unmasked_row, item);
      }
    }
  }

  // Takes in query tiles up to the next that is hidden. S of the next half, or of the next query
  // tile's first, is begun before the products of the one before it are done.
  __device__ __forceinline__ void mainloop_run_ahead(float (&dk)[2][columns],
                                                     float (&dv)[2][columns],
                                                     QuerySequence<C::ordered>& queries,
                                                     int first_unmasked_row, uint32_t item) {
    float s[scores];
    const int first = stage_of<C::stages>(dq_.count());
    mbarrier_wait(barriers_.q_full(first), parity_of<C::stages>(dq_.count()));
    issue_s(s, 0, first);
    wgmma_wait<0>();
    pin_registers(s);
    bool more = true;
#pragma unroll 1
    while (more) {
      float dp[scores];
      uint32_t operand[steps][4];
      uint32_t n = dq_.count();
      const int stage = stage_of<C::stages>(n);
      const int m = queries.tile(), tile = queries.tile_of_all();
      const bool masked = m * C::block_m < first_unmasked_row;
      queries.advance();
      more = queries.more() && !is_hidden(queries.tile());
      mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(n));
      issue_dp(dp, 0, stage);
      compute_p<C>(s, args_.scale_log2, shift_);
      if (masked) hide_rows(s, 0, m, item);
      pack_all(s, operand);
      pin_registers(dv[0]);
      wgmma_fence();
      issue_update<C>(dv[0], operand, dy_tile(stage));
      wgmma_wait<1>();
      pin_registers(dp);
      compute_ds(dp, s);
      if (masked) hide_rows(dp, 0, m, item);
      wgmma_wait<0>();
      pin_registers(dv[0]);
      pack_all(dp, operand);
      issue_s(s, 1, stage);
      pin_registers(dk[0]);
      issue_update<C>(dk[0], operand, q_tile(stage));
      dq_.await_room();
      dq_.store_half(operand, 0);
      wgmma_wait<0>();
      pin_registers(s);
      pin_registers(dk[0]);
      issue_dp(dp, 1, stage);
      compute_p<C>(s, args_.scale_log2, shift_);
      if (masked) hide_rows(s, 1, m, item);
      pack_all(s, operand);
      pin_registers(dv[1]);
      wgmma_fence();
      issue_update<C>(dv[1], operand, dy_tile(stage));
      wgmma_wait<1>();
      pin_registers(dp);
      compute_ds(dp, s);
      if (masked) hide_rows(dp, 1, m, item);
      wgmma_wait<0>();
      pin_registers(dv[1]);
      pack_all(dp, operand);
      // A run's last tile has itself as the next one: a branch around products serialises them.
      if (more) ++n;
      const int next = stage_of<C::stages>(n);
      mbarrier_wait(barriers_.q_full(next), parity_of<C::stages>(n));
      issue_s(s, 0, next);
      pin_registers(dk[1]);
      issue_update<C>(dk[1], operand, q_tile(stage));
      dq_.store_half(operand, 1);
      dq_.tell();
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
      pin_registers(dk[1]);
      pin_registers(s);
      dq_.advance_to(tile, k_stage_);
    }
  }

  __device__ __forceinline__ void issue_s(float (&s)[scores], int half, int stage) const {
    issue(s, k_keys() + half * C::half_n * 128, q_tile(stage), statistics(stage));
  }
  __device__ __forceinline__ void issue_dp(float (&dp)[scores], int half, int stage) const {
    issue(dp, v_keys() + half * C::half_n * 128, dy_tile(stage),
          statistics(stage) + C::statistics_bytes / 2);
  }
  // less: what is taken off each query's products, see ApartStatistics.
  static __device__ __forceinline__ void issue(float (&d)[scores], uint32_t keys, uint32_t queries,
                                               uint32_t less) {
    constexpr uint32_t ones[4] = {0x3f803f80, 0x3f803f80, 0, 0};
    pin_registers(d);
    wgmma_fence();
    issue_scores<C>(d, keys, queries, ones, less);
  }

  static __device__ __forceinline__ void compute_ds(float (&dp)[scores], const float (&p)[scores]) {
#pragma unroll
    for (int i = 0; i < scores; ++i) dp[i] *= p[i];
  }
  static __device__ __forceinline__ void pack_all(const float (&x)[scores],
                                                  uint32_t (&operand)[steps][4]) {
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(x, k, operand[k]);
  }
  __device__ __forceinline__ void hide_rows(float (&x)[scores], int half, int m,
                                            uint32_t item) const {
    const FirstRows<C> rows(shared_, item);
    const int key = group_ * C::group_n + half * C::half_n + threadIdx.x % 128 / 32 * 16 +
                    threadIdx.x % 32 / 4;
    const int before = m * C::block_m + 2 * (threadIdx.x % 4);
    const int left[2] = {rows.get(key) - before, rows.get(key + 8) - before};
    apply_mask(x, left);
  }

  // The next query tile, which is hidden.
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
    dq_.await_room();
    dq_.store_half(ds, 0);
    dq_.store_half(ds, 1);
    dq_.tell();
    dq_.compute_previous_dq_if_owned(shift_);
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

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
  DqMaker<C> dq_;
  float shift_;          // a whole number
  int k_stage_;
  int group_first_row_;  // that sees the warpgroup's first key
};

}  // namespace baracuda::sm90::backward
