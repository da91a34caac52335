// A consumer warpgroup of the sm90a backward kernel with two halves of 64 keys.
//
// Twice as many keys share each read of Q and dO and each addition of dQ. The A operands of dV and
// dK take turns in one set of registers, for one half and then for the other. A second set would
// not fit.
#pragma once

#include "attention/backward/sm90/consumer_base.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class DoubleConsumer : ConsumerBase<C> {
  using Base = ConsumerBase<C>;
  using typename Base::Element;
  using typename Base::Queries;
  using Base::args_;
  using Base::barriers_;
  using Base::columns;
  using Base::dq_;
  using Base::dy_tile;
  using Base::group_;
  using Base::group_first_row_;
  using Base::k_keys;
  using Base::k_stage_;
  using Base::q_tile;
  using Base::release;
  using Base::scores;
  using Base::shared_;
  using Base::shift_;
  using Base::statistics;
  using Base::steps;
  using Base::v_keys;

 public:
  using Base::Base;

  __device__ __forceinline__ void run() {
    this->for_each_key_tile([&](const WorkTile<C>& slot, int count, uint32_t item) {
      float dk[2][columns], dv[2][columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) dk[0][i] = dk[1][i] = dv[0][i] = dv[1][i] = 0.0f;
      group_first_row_ = uniform(FirstRows<C>(shared_, item).get(group_ * C::group_n));
      this->await_keys(item);
      if (count > 0) mainloop_ahead(dk, dv, slot, count, item);
      release(barriers_.v_empty());
      const int key0 = slot.key0() + this->warps_first_key();
      const int batch = slot.batch(), kv_head = slot.kv_head();
      this->end_key_tile(count, item);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const GradientRows<Element, C::head_dim> rows(batch, kv_head, key0 + half * C::half_n,
                                                      args_.key_len, args_.gradients_f32);
        rows.store(args_.dk, args_.dk_strides, dk[half], args_.scale * this->unshift());
        rows.store(args_.dv, args_.dv_strides, dv[half], this->unshift());
      }
    });
  }

 private:
  __device__ __forceinline__ void mainloop_ahead(float (&dk)[2][columns], float (&dv)[2][columns],
                                                 const WorkTile<C>& slot, int count,
                                                 uint32_t item) {
    const auto queries = this->sequence_of(slot, count);
    const int first_unmasked_row = uniform(slot.first_unmasked_row());
    this->for_each_run(queries, [&](Queries& run) {
      mainloop_run_ahead(dk, dv, run, first_unmasked_row, item);
    });
  }

  // Processes query tiles up to the next fully masked one. S of the next half, or of the next query
  // tile's first half, is issued before the products of the previous half are done.
  __device__ __forceinline__ void mainloop_run_ahead(float (&dk)[2][columns],
                                                     float (&dv)[2][columns], Queries& queries,
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
      more = queries.more() && !this->is_hidden(queries.tile());
      mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(n));
      issue_dp(dp, 0, stage);
      compute_p<C>(s, args_.scale_log2, shift_);
      if (masked) hide_rows(s, 0, m, item);
      Base::pack_all(s, operand);
      pin_registers(dv[0]);
      wgmma_fence();
      issue_update<C>(dv[0], operand, dy_tile(stage));
      wgmma_wait<1>();
      pin_registers(dp);
      Base::compute_ds(dp, s);
      if (masked) hide_rows(dp, 0, m, item);
      wgmma_wait<0>();
      pin_registers(dv[0]);
      Base::pack_all(dp, operand);
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
      Base::pack_all(s, operand);
      pin_registers(dv[1]);
      wgmma_fence();
      issue_update<C>(dv[1], operand, dy_tile(stage));
      wgmma_wait<1>();
      pin_registers(dp);
      Base::compute_ds(dp, s);
      if (masked) hide_rows(dp, 1, m, item);
      wgmma_wait<0>();
      pin_registers(dv[1]);
      Base::pack_all(dp, operand);
      // After the last tile of a run, S of that same tile is issued again and discarded, since a
      // branch around products would serialise them.
      if (more) ++n;
      const int next = stage_of<C::stages>(n);
      mbarrier_wait(barriers_.q_full(next), parity_of<C::stages>(n));
      issue_s(s, 0, next);
      pin_registers(dk[1]);
      issue_update<C>(dk[1], operand, q_tile(stage));
      dq_.store_half(operand, 1);
      dq_.tell();
      this->end_query_tile(stage);
      pin_registers(dk[1]);
      pin_registers(s);
      dq_.advance_to(tile, k_stage_);
    }
  }

  __device__ __forceinline__ void issue_s(float (&s)[scores], int half, int stage) const {
    issue(s, k_keys() + half * C::half_n * 128, q_tile(stage), statistics(stage));
  }
  __device__ __forceinline__ void issue_dp(float (&dp)[scores], int half, int stage) const {
    issue(dp, v_keys() + half * C::half_n * 128, dy_tile(stage), this->deltas(stage));
  }
  // less: the address of what is subtracted from the products of each query, see ApartStatistics.
  static __device__ __forceinline__ void issue(float (&d)[scores], uint32_t keys, uint32_t queries,
                                               uint32_t less) {
    uint32_t ones[4], delta_ones[4];
    Base::make_ones(ones, delta_ones);
    pin_registers(d);
    wgmma_fence();
    issue_scores<C>(d, keys, queries, ones, less);
  }

  __device__ __forceinline__ void hide_rows(float (&x)[scores], int half, int m,
                                            uint32_t item) const {
    const FirstRows<C> rows(shared_, item);
    const int key = this->warps_first_key() + half * C::half_n + threadIdx.x % 32 / 4;
    const int before = m * C::block_m + 2 * (threadIdx.x % 4);
    const int left[2] = {rows.get(key) - before, rows.get(key + 8) - before};
    apply_mask(x, left);
  }
};

}  // namespace baracuda::sm90::backward
