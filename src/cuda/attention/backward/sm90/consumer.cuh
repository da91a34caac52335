// A consumer warpgroup of the sm90a backward kernel: 64 keys at a time.
//
// S and dP are computed transposed, with a row for each key. P and dS then go from the accumulators
// to the A operands of dV and dK in registers. A thread has elements of two keys only, so its part
// of the mask takes two registers.
#pragma once

#include "attention/backward/sm90/consumer_base.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class Consumer : ConsumerBase<C> {
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
      float dk[columns], dv[columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) dk[i] = dv[i] = 0.0f;
      read_first_rows();
      this->await_keys(item);
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
      const GradientRows<Element, C::head_dim> rows(slot.batch(), slot.kv_head(),
                                                    slot.key0() + this->warps_first_key(),
                                                    args_.key_len, args_.gradients_f32);
      this->end_key_tile(count, item);
      rows.store(args_.dk, args_.dk_strides, dk, args_.scale * this->unshift());
      rows.store(args_.dv, args_.dv_strides, dv, this->unshift());
    });
  }

 private:
  // A operands of S and dP, for configurations that keep them in registers for a whole key tile.
  struct HeldKeys {
    uint32_t k[steps][4], v[steps][4];
  };

  __device__ __forceinline__ void read_first_rows() {
    const FirstRows<C> rows(shared_, 0);
    const int key = this->warps_first_key() + threadIdx.x % 32 / 4;
    first_row_[0] = rows.get(key) - 2 * (threadIdx.x % 4);
    first_row_[1] = rows.get(key + 8) - 2 * (threadIdx.x % 4);
    group_first_row_ = uniform(rows.get(group_ * C::group_n));
    __syncwarp();
    release(barriers_.first_rows_empty());
  }

  __device__ __forceinline__ void mainloop(float (&dk)[columns], float (&dv)[columns],
                                           const WorkTile<C>& slot, int count) {
    const int first_unmasked_row = uniform(slot.first_unmasked_row());
#pragma unroll 1
    for (auto queries = this->sequence_of(slot, count); queries.more(); queries.advance()) {
      const int m = queries.tile();
      if (this->is_hidden(m)) {
        this->skip_query_tile();
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
    Base::make_ones(ones, delta_ones);
    wgmma_fence();
    issue_scores<C>(s, k_keys(), q_tile(stage), ones, statistics(stage));
    mbarrier_wait(barriers_.dy_full(stage), parity);
    wgmma_fence();
    issue_scores<C>(dp, v_keys(), dy_tile(stage), delta_ones, this->deltas(stage));
    wgmma_wait<1>();
    pin_registers(s);
    const int left[2] = {first_row_[0] - m * C::block_m, first_row_[1] - m * C::block_m};
    compute_p<C>(s, s, args_.scale_log2, shift_);
    if (masked) apply_mask(s, left);
    Base::pack_all(s, p);
    pin_registers(dv);
    wgmma_fence();
    issue_update<C>(dv, p, dy_tile(stage));
    wgmma_wait<1>();
    pin_registers(dp);
    Base::compute_ds(dp, s);
    if (masked) apply_mask(dp, left);
    Base::pack_all(dp, ds);
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
    this->for_each_run(this->sequence_of(slot, count), [&](Queries& queries) {
      mainloop_run_ahead(dk, dv, held, queries, first_unmasked_row);
    });
  }

  // Processes query tiles up to the next fully masked one.
  __device__ __forceinline__ void mainloop_run_ahead(float (&dk)[columns], float (&dv)[columns],
                                                     const HeldKeys& held,
                                                     Queries& queries,
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
      more = queries.more() && !this->is_hidden(queries.tile());
      mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(n));
      issue_dp(dp, held, stage);
      compute_p<C>(weights, s, args_.scale_log2, shift_);
      if (masked) apply_mask(weights, left);
      Base::pack_all(weights, p);
      pin_registers(dv);
      wgmma_fence();
      issue_update<C>(dv, p, dy_tile(stage));
      // After the last tile of a run, S of that same tile is issued again and discarded, since a
      // branch around products would serialise them.
      if (more) ++n;
      const int next = stage_of<C::stages>(n);
      mbarrier_wait(barriers_.q_full(next), parity_of<C::stages>(n));
      issue_s(s, held, next);
      wgmma_wait<2>();
      pin_registers(dp);
      Base::compute_ds(dp, weights);
      if (masked) apply_mask(dp, left);
      Base::pack_all(dp, ds);
      pin_registers(dk);
      wgmma_fence();
      issue_update<C>(dk, ds, q_tile(stage));
      dq_.publish_ds(ds);
      this->end_query_tile(stage);
      pin_registers(dk);
      pin_registers(dv);
      pin_registers(s);
      dq_.advance_to(tile, k_stage_);
    }
  }

  __device__ __forceinline__ void issue_s(float (&s)[scores], const HeldKeys& held,
                                          int stage) const {
    uint32_t ones[4], delta_ones[4];
    Base::make_ones(ones, delta_ones);
    pin_registers(s);
    wgmma_fence();
    issue_scores<C>(s, held.k, q_tile(stage), ones, statistics(stage));
  }
  __device__ __forceinline__ void issue_dp(float (&dp)[scores], const HeldKeys& held,
                                           int stage) const {
    uint32_t ones[4], delta_ones[4];
    Base::make_ones(ones, delta_ones);
    pin_registers(dp);
    wgmma_fence();
    issue_scores<C>(dp, held.v, dy_tile(stage), delta_ones, this->deltas(stage));
  }

  int first_row_[2];  // the first rows that see this thread's keys, less its first column
};

}  // namespace baracuda::sm90::backward
