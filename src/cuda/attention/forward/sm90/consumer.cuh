// A consumer warpgroup of the sm90a kernel without ScoresAhead (config.h): QK of a key tile is issued
// after PV of the tile before has ended and O is rescaled. See consumer_parts.cuh.
#pragma once

#include "attention/forward/sm90/consumer_parts.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
class Consumer : ConsumerParts<C, First, Last> {
  using Element = typename C::Element;
  using Parts = ConsumerParts<C, First, Last>;
  using typename Parts::PreviousState;
  using Parts::args_;
  using Parts::await_k;
  using Parts::await_q;
  using Parts::await_turn;
  using Parts::await_v;
  using Parts::barriers_;
  using Parts::clear;
  using Parts::epilogue;
  using Parts::first_weights;
  using Parts::group_;
  using Parts::issue_output;
  using Parts::issue_scores;
  using Parts::iteration_;
  using Parts::load_previous_state;
  using Parts::load_work_tile;
  using Parts::mask;
  using Parts::no_keys;
  using Parts::output;
  using Parts::pass_turn;
  using Parts::release_k;
  using Parts::release_q;
  using Parts::release_v;
  using Parts::seen_;
  using Parts::shared_;
  using Parts::skip_key_tiles;
  using Parts::tiles_;

 public:
  using Parts::Parts;

  __device__ __forceinline__ void run() {
    float o[C::head_dim / 2];
    RowStatistics rows;
    load_work_tile(0);
#pragma unroll 1
    for (uint32_t n = 0; uniform(tiles_) >= 0; ++n) {
      const WorkTile<C> tile(shared_, group_, n);
      clear(o);
      rows = no_keys();
      await_q(n);
      seen_ = uniform(seen_);
      skip_key_tiles(uniform(tiles_) - seen_);
      PreviousState previous;
      if (seen_ > 0) {
        mainloop(o, rows, previous, tile, n);
      } else {
        release_q();
        load_previous_state(previous, tile);
        load_work_tile(n + 1);
      }
      epilogue(o, rows, previous, tile, n);
    }
    if constexpr (Last && C::stages_output) output(0).drain();
  }

 private:
  // Processes the key tiles that the warpgroup sees, from the last to the first. The softmax of
  // each tile overlaps with PV of the previous one.
  __device__ __forceinline__ void mainloop(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                           PreviousState& previous, const WorkTile<C>& query,
                                           uint32_t n) {
    uint32_t p[C::block_n / 16][4];
    const int unmasked = query.limit(0);
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    int t = seen_ - 1;
    if constexpr (C::last_n < C::block_n) {
      // If the last key tile has few keys, only their columns are computed.
      if (query.limit(C::group_m - 1) - t * C::block_n <= C::last_n) {
        uint32_t short_p[C::last_n / 16][4];
        first_weights(rows, short_p, query, n, t, needs_mask(t));
        if (--t < 0) return mainloop_tail(o, short_p, previous, query, n);
        mainloop_step(o, rows, short_p, p, query, t, [&] { return needs_mask(t); });
      } else {
        first_weights(rows, p, query, n, t, needs_mask(t));
      }
    } else {
      first_weights(rows, p, query, n, t, needs_mask(t));
    }
#pragma unroll 1
    for (--t; t >= 0 && needs_mask(t); --t)
      mainloop_step(o, rows, p, p, query, t, std::true_type{});
#pragma unroll 1
    for (; t >= 0; --t) mainloop_step(o, rows, p, p, query, t, std::false_type{});
    mainloop_tail(o, p, previous, query, n);
  }

  // previous_p: the weights of the previous tile. p: receives the weights of this tile; it may be
  // the same array. Masked: std::true_type, std::false_type, or a predicate.
  template <int Steps, typename Masked>
  __device__ __forceinline__ void mainloop_step(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                                const uint32_t (&previous_p)[Steps][4],
                                                uint32_t (&p)[C::block_n / 16][4],
                                                const WorkTile<C>& query, int t, Masked masked) {
    float s[C::block_n / 2];
    float factor[2];
    ++iteration_;
    await_k();
    await_turn();
    pin_registers(s);
    pin_registers(o);
    wgmma_fence();
    issue_scores(s, iteration_);
    await_v(iteration_ - 1);
    wgmma_fence();
    issue_output(o, previous_p, iteration_ - 1);
    pass_turn();
    const bool positive = maxima_are_positive(rows);
    wgmma_wait<1>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if constexpr (std::is_same_v<Masked, std::true_type>) {
      mask(s, query, t);
    } else if constexpr (!std::is_same_v<Masked, std::false_type>) {
      if (masked()) mask(s, query, t);
    }
    softmax_step(s, rows, args_.scale_log2, factor, positive);
    order_sums_before_wait(rows, barriers_.base);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(iteration_ - 1);
    rescale(o, factor);
    pack_weights<Element>(s, p);
  }

  template <int Steps>
  __device__ __forceinline__ void mainloop_tail(float (&o)[C::head_dim / 2],
                                                const uint32_t (&p)[Steps][4],
                                                PreviousState& previous, const WorkTile<C>& query,
                                                uint32_t n) {
    await_v(iteration_);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, p, iteration_);
    load_previous_state(previous, query);
    load_work_tile(n + 1);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(iteration_);
  }
};

}  // namespace baracuda::sm90
