// A consumer warpgroup of the sm90a kernel with ScoresAhead (config.h). See consumer_parts.cuh for
// what it has in common with consumer.cuh.
//
// QK, softmax and PV of a warpgroup form a chain that limits its speed. Here P of a key tile has its
// own registers, so it can be computed while PV still reads P of the previous key tile. So QK of the
// next key tile is issued before the wait for that PV and before the rescaling of O, and overlaps
// with both.
//
// In steps that begin a state, the warpgroup goes from query tile to query tile without a pause: QK of
// the next query tile's first key tile is issued before PV of this one's last key tile, and its softmax
// overlaps with that PV. So Q has two places. A place is held until its query tile has ended, because
// the outputs of the query tile are staged there (output_stage.cuh).
#pragma once

#include "attention/forward/sm90/consumer_parts.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
class ConsumerAhead : ConsumerParts<C, First, Last> {
  static_assert(!C::take_turns && C::last_n == C::block_n, "not implemented with ScoresAhead");
  static_assert(First || !C::continuous, "not implemented for steps that continue a state");
  using Element = typename C::Element;
  using Parts = ConsumerParts<C, First, Last>;
  using typename Parts::PreviousState;
  using Parts::args_;
  using Parts::await_k;
  using Parts::await_q;
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
    if constexpr (continuous) {
      run_continuously();
    } else {
      run_with_pauses();
    }
  }

 private:
  static constexpr bool continuous = C::continuous;
  using Weights = uint32_t[C::block_n / 16][4];
  // What the epilogue of a query tile needs. rows: its statistics, since the next query tile may have
  // begun.
  struct QueryTileEnd {
    RowStatistics rows;
    PreviousState previous;
  };

  // As Consumer::run(). One function for both has other machine code: ptxas schedules it differently.
  __device__ __forceinline__ void run_with_pauses() {
    float o[C::head_dim / 2];
    Weights p;
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
        const int unmasked = uniform(tile.limit(0));
        first_weights(rows, p, tile, n, seen_ - 1, seen_ * C::block_n > unmasked);
        QueryTileEnd end;
        other_key_tiles(o, rows, p, end, n);
        previous = end.previous;
      } else {
        release_q();
        load_previous_state(previous, tile);
        load_work_tile(n + 1);
      }
      epilogue(o, rows, previous, tile, n);
    }
    if constexpr (Last && C::stages_output) output(0).drain();
  }

  __device__ __forceinline__ void run_continuously() {
    float o[C::head_dim / 2];
    Weights p;
    RowStatistics rows;
    load_work_tile(0);
    uint32_t n = 0;
#pragma unroll 1
    while (uniform(tiles_) >= 0) {
      QueryTileEnd end;
      clear(o);
      rows = no_keys();
      await_q(n);
      seen_ = uniform(seen_);
      skip_key_tiles(uniform(tiles_) - seen_);
      if (seen_ == 0) {
        load_work_tile(n + 1);
        end.rows = rows;
        finish(o, end, n++);
        continue;
      }
      {
        const WorkTile<C> query(shared_, group_, n);
        first_weights(rows, p, query, n, seen_ - 1, seen_ * C::block_n > uniform(query.limit(0)));
      }
#pragma unroll 1
      for (;;) {
        // Without these three, ptxas keeps the descriptors of the loop over key tiles in registers that
        // are not uniform.
        seen_ = uniform(seen_);
        iteration_ = uniform(iteration_);
        n = uniform(n);
        const bool goes_on = other_key_tiles(o, rows, p, end, n);
        finish(o, end, n++);
        if (!uniform(goes_on)) break;
        clear(o);
      }
    }
  }

  __device__ __forceinline__ void finish(float (&o)[C::head_dim / 2], QueryTileEnd& end,
                                         uint32_t n) const {
    epilogue(o, end.rows, end.previous, WorkTile<C>(shared_, group_, n), n);
    release_q(n);
  }

  // The index of the next iteration, in a uniform register, and whether its K has arrived. The
  // barrier is tested during the softmax, so that the products do not wait for the test.
  struct NextKeyTile {
    uint32_t iteration;
    bool k_is_full;
  };
  __device__ __forceinline__ NextKeyTile peek_next_key_tile() const {
    const uint32_t iteration = uniform(iteration_ + 1);
    return {iteration, mbarrier_test(barriers_.k_full(stage_of<C::stages>(iteration)),
                                     parity_of<C::stages>(iteration))};
  }
  // Processes the key tiles of query tile n but the first, whose weights p has. Returns true if the
  // next query tile has begun; rows and p are then of that one.
  __device__ __forceinline__ bool other_key_tiles(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                                  Weights& p, QueryTileEnd& end, uint32_t n) {
    Weights p1;  // p and p1 hold the weights of the key tiles in turn
    float factor[2] = {1.0f, 1.0f};  // o must be multiplied by it when the PV in flight has ended
    const WorkTile<C> query(shared_, group_, n);
    const int unmasked = uniform(query.limit(0));
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    int t = seen_ - 1;
    bool pending = false;  // a PV product is in flight
    NextKeyTile next = peek_next_key_tile();
#pragma unroll 1
    for (;;) {
      if (--t < 0) return end_query_tile(o, rows, factor, p, p, pending, next, end, n);
      mainloop_step(o, rows, factor, p, p1, pending, next, query, n, t, needs_mask(t));
      pending = true;
      if (--t < 0) return end_query_tile(o, rows, factor, p1, p, true, next, end, n);
      mainloop_step(o, rows, factor, p1, p, true, next, query, n, t, needs_mask(t));
    }
  }

  // Processes key tile t of query tile n. previous_p: the weights of the key tile before. p: receives
  // those of this one. factor: on entry the factor for o that the key tile before gave, on return that
  // of this one.
  __device__ __forceinline__ void mainloop_step(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                                float (&factor)[2], const Weights& previous_p,
                                                Weights& p, bool pending, NextKeyTile& next,
                                                const WorkTile<C>& query, uint32_t n, int t,
                                                bool masked) {
    float s[C::block_n / 2];
    const uint32_t iteration = next.iteration;
    ++iteration_;
    const bool v_is_full = mbarrier_test(barriers_.v_full(stage_of<C::stages>(iteration - 1)),
                                         parity_of<C::stages>(iteration - 1));
    if (!next.k_is_full) await_k();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, iteration, n);
    wgmma_wait<1>();
    pin_registers(o);
    if (pending) release_v(iteration - 2);
    rescale(o, factor);
    if (!v_is_full) await_v(iteration - 1);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, previous_p, iteration - 1);
    const bool positive = maxima_are_positive(rows);
    wgmma_wait<1>();
    pin_registers(s);
    release_k();
    if (!continuous && t == 0) release_q();
    if (masked) mask(s, query, t);
    next = peek_next_key_tile();
    softmax_step(s, rows, args_.scale_log2, factor, positive);
    pack_weights<Element>(s, p);
  }

  // Makes query tile n the current one. Returns false if the warpgroup must pause before it: there is
  // none, or the warpgroup sees none of its key tiles, or it must skip more of them than one.
  __device__ __forceinline__ bool goes_on_with(uint32_t n) {
    load_work_tile(n);
    const int tiles = uniform(tiles_), seen = uniform(seen_);
    if (seen <= 0 || tiles - seen > 1) return false;
    seen_ = seen;
    tiles_ = tiles;
    return true;
  }

  // Issues PV of the last key tile of query tile n, whose weights last_p has, and waits for it. If it
  // can go on without a pause, it first issues QK of query tile n + 1 and its first key tile, computes
  // the weights p beside PV, and returns true.
  __device__ __forceinline__ bool end_query_tile(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                                 float (&factor)[2], const Weights& last_p,
                                                 Weights& p, bool pending, const NextKeyTile& next,
                                                 QueryTileEnd& end, uint32_t n) {
    const uint32_t last = uniform(iteration_);
    end.rows = rows;
    bool goes_on = false;
    if constexpr (continuous) goes_on = goes_on_with(n + 1);
    if (!goes_on) {
      wgmma_wait<0>();
      pin_registers(o);
      if (pending) release_v(last - 1);
      rescale(o, factor);
      await_v(last);
      pin_registers(o);
      wgmma_fence();
      issue_output(o, last_p, last);
      load_previous_state(end.previous, WorkTile<C>(shared_, group_, n));
      if constexpr (!continuous) load_work_tile(n + 1);
      wgmma_wait<0>();
      pin_registers(o);
      release_v(last);
      return false;
    }
    await_q(n + 1);
    const WorkTile<C> query(shared_, group_, n + 1);
    const bool masked = seen_ * C::block_n > uniform(query.limit(0));
    const bool skips = tiles_ != seen_;
    ++iteration_;
    if (!next.k_is_full) await_k();
    if (skips) {  // the other warpgroups, or the other block of a cluster, see this key tile
      release_k();
      ++iteration_;
      await_k();
    }
    float s[C::block_n / 2];
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, uniform(iteration_), n + 1);
    wgmma_wait<1>();
    pin_registers(o);
    if (pending) release_v(last - 1);
    rescale(o, factor);
    await_v(last);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, last_p, last);
    wgmma_wait<1>();
    pin_registers(s);
    release_k();
    if (masked) mask(s, query, seen_ - 1);
    rows = no_keys();
    softmax_step(s, rows, args_.scale_log2, factor, false);
    order_sums_before_wait(rows, barriers_.base);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(last);
    if (skips) {  // not earlier: V of the skipped key tile waits for the place of V of the one before
      await_v(last + 1);
      release_v(last + 1);
    }
    pack_weights<Element>(s, p);
    return true;
  }
};

}  // namespace baracuda::sm90
