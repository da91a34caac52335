// A consumer warpgroup of the sm90a kernel: 64 query rows at a time. S = QK are the scores, P are
// their weights (state.cuh), and O is the sum of PV.
//
// The warpgroup owns all columns of S and O. So a row's statistics live in one quad of lanes, and P
// goes from the accumulators of QK to the A operand of PV in registers. The softmax of a key tile
// overlaps with two kinds of tensor-core work: PV of the previous key tile, and the products of the
// other warpgroups.
//
// QK, softmax and PV of a warpgroup form a chain that limits its speed. With ScoresAhead (config.h)
// P of a key tile has its own registers, so it can be computed while PV still reads P of the
// previous key tile. Then QK of the next key tile is issued before the wait for that PV and before
// the rescaling of O, and overlaps with both. Without ScoresAhead it is issued after both.
#pragma once

#include <math_constants.h>

#include <type_traits>

#include "attention/forward/sm90/barriers.cuh"
#include "attention/forward/sm90/output_stage.cuh"
#include "attention/forward/sm90/softmax.cuh"
#include "attention/forward/sm90/state.cuh"
#include "common/cluster.cuh"
#include "common/dependent_launch.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
class Consumer {
  using Element = typename C::Element;

 public:
  __device__ __forceinline__ Consumer(const HopperArgs& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : all_(args), args_(args.step), shared_(shared), barriers_(barriers), group_(group) {
    if (group == C::consumers - 1) pass_turn();  // consumer 0 issues first
  }

  __device__ __forceinline__ void run() {
    float o[C::head_dim / 2];
    RowStatistics rows;
    load_work_tile(0);
#pragma unroll 1
    for (uint32_t n = 0; uniform(tiles_) >= 0; ++n) {
      const WorkTile<C> tile(shared_, group_, n);
#pragma unroll
      for (int i = 0; i < C::head_dim / 2; ++i) o[i] = 0.0f;
      rows = RowStatistics{{-CUDART_INF_F, -CUDART_INF_F}, {0.0f, 0.0f}};
      await_q(n);
      seen_ = uniform(seen_);
      skip_key_tiles(uniform(tiles_) - seen_);
      PreviousState previous;
      if (seen_ > 0) {
        if constexpr (C::scores_ahead) {
          mainloop_ahead(o, rows, previous, tile, n);
        } else {
          mainloop(o, rows, previous, tile, n);
        }
      } else {
        release_q();
        load_previous_state(previous, tile);
        load_work_tile(n + 1);
      }
      epilogue(o, rows, previous, tile);
    }
    if constexpr (Last && C::stages_output) output().drain();
  }

 private:
  __device__ __forceinline__ OutputStage<C> output() const {
    return OutputStage<C>(all_, shared_, group_);
  }

  // The state that the previous step left. It is loaded only at the end of a query tile, because
  // until then the previous step may still be running. m and l are loaded during the last PV
  // product. If there are registers for o_acc (preloads_state), it is loaded then, too; else it is
  // loaded when it is added.
  static constexpr bool preloads_state = Last && C::loads_state_early && C::head_dim <= 128;
  struct PreviousState {
    RowStatistics rows;
    typename StateRows<C>::Fragments o;
  };
  __device__ __forceinline__ void load_previous_state(PreviousState& previous,
                                                      const WorkTile<C>& tile) const {
    if constexpr (!First) {
      await_previous_grids();
      const StateRows<C> state(args_, tile);
      state.load_statistics(previous.rows);
      if constexpr (preloads_state) state.load(previous.o);
    }
  }
  // A step between the first and the last does not load o_acc. It rescales its sums to the m of the
  // state (state.cuh), and adds them to o_acc in memory. If the rescaling would multiply the
  // weights of a row by more than 2^16, the warp of that row instead loads o_acc, merges it with
  // its sums, and stores the result.
  __device__ __forceinline__ void epilogue(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                           const PreviousState& previous,
                                           const WorkTile<C>& tile) const {
    const StateRows<C> state(args_, tile);
    if constexpr (Last) {
      if constexpr (!First) merge_previous_state(o, rows, previous, state);
      state.finish(o, rows, output());
      return;
    }
    float factor[2];
    if constexpr (First) {
      state.save(o);
    } else if (merge_under_previous_max(rows, previous.rows, args_.scale_log2, factor)) {
#pragma unroll
      for (int i = 0; i < C::head_dim / 2; ++i) o[i] *= factor[i / 2 % 2];
      state.save_sum(o);
    } else {
      merge_previous_state(o, rows, previous, state);
      state.save(o);
    }
    state.save_statistics(rows);
  }
  __device__ __forceinline__ void merge_previous_state(float (&o)[C::head_dim / 2],
                                                       RowStatistics& rows,
                                                       const PreviousState& previous,
                                                       const StateRows<C>& state) const {
    const Factors factors = merge_statistics(rows, previous.rows, args_.scale_log2);
    if constexpr (preloads_state) {
      state.add(o, factors, previous.o);
    } else {
      state.add(o, factors);
    }
  }

  // With take_turns, the consumers issue their products one after the other in a fixed order, so
  // that the softmax of one overlaps with the products of the others.
  __device__ __forceinline__ void await_turn() const {
    if constexpr (C::take_turns) named_barrier_sync(1 + group_, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (C::take_turns) named_barrier_arrive(1 + (group_ + 1) % C::consumers, 256);
  }

  static __device__ __forceinline__ void release(uint32_t barrier) {
    const int lane = threadIdx.x % 32;
    if constexpr (C::cluster == 1) {
      if (lane == 0) mbarrier_arrive(barrier);
    } else {
      if (lane < C::cluster) mbarrier_arrive_at(address_at(lane, barrier));
    }
  }
  // await_k() and release_k() are about K of the current iteration (iteration_), await_v() and
  // release_v() about V of iteration n.
  __device__ __forceinline__ void await_k() const {
    mbarrier_wait(barriers_.k_full(stage_of<C::stages>(iteration_)),
                  parity_of<C::stages>(iteration_));
  }
  __device__ __forceinline__ void release_k() const {
    release(barriers_.k_empty(stage_of<C::stages>(iteration_)));
  }
  __device__ __forceinline__ void await_v(uint32_t n) const {
    mbarrier_wait(barriers_.v_full(stage_of<C::stages>(n)), parity_of<C::stages>(n));
  }
  __device__ __forceinline__ void release_v(uint32_t n) const {
    release(barriers_.v_empty(stage_of<C::stages>(n)));
  }
  // Makes the n-th query tile the current one. After the first tile, this is called while the last
  // PV product of the previous tile runs, if there is one.
  __device__ __forceinline__ void load_work_tile(uint32_t n) {
    mbarrier_wait(barriers_.slot_full(group_, n % C::slots), parity_of<C::slots>(n));
    const WorkTile<C> tile(shared_, group_, n);
    tiles_ = tile.tiles();
    seen_ = tile.seen();
  }
  __device__ __forceinline__ void await_q(uint32_t n) const {
    mbarrier_wait(barriers_.q_full(group_), parity_of<1>(n));
  }
  __device__ __forceinline__ void release_q() const {
    mbarrier_arrive(barriers_.q_empty(group_));
  }

  // Issues QK of iteration n, for the first 2 * S columns of its key tile.
  template <int S>
  __device__ __forceinline__ void issue_scores(float (&s)[S], uint32_t n) const {
    const int stage = stage_of<C::stages>(n);
    const uint64_t q_tile = wgmma_descriptor(shared_ + group_ * C::q_bytes, 0);
    const uint64_t k_tile = wgmma_descriptor(shared_ + C::k_offset + stage * C::kv_bytes, 0);
#pragma unroll
    for (int d = 0; d < C::head_dim / 16; ++d) {
      const int block = d / 4, inside = d % 4 * 32;
      wgmma<Element>(s, q_tile + ((block * C::q_block_bytes + inside) >> 4),
                     k_tile + ((block * C::kv_block_bytes + inside) >> 4), d > 0);
    }
    wgmma_commit();
  }
  // Issues PV of iteration n.
  template <int Steps>
  __device__ __forceinline__ void issue_output(float (&o)[C::head_dim / 2],
                                               const uint32_t (&p)[Steps][4], uint32_t n) const {
    const int stage = stage_of<C::stages>(n);
    const uint64_t v_tile =
        wgmma_descriptor(shared_ + C::v_offset + stage * C::kv_bytes, C::kv_block_bytes);
#pragma unroll
    for (int i = 0; i < Steps; ++i) wgmma<Element>(o, p[i], v_tile + (i * 2048 >> 4));
    wgmma_commit();
  }

  // Waits for and releases the key tiles that only other consumers see.
  __device__ __forceinline__ void skip_key_tiles(int tiles) {
#pragma unroll 1
    for (; tiles > 0; --tiles) {
      ++iteration_;
      await_turn();
      pass_turn();
      await_k();
      release_k();
      await_v(iteration_);
      release_v(iteration_);
    }
  }

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
        mainloop_prologue(rows, short_p, query, t, needs_mask(t));
        if (--t < 0) return mainloop_tail(o, short_p, previous, query, n);
        mainloop_step(o, rows, short_p, p, query, t, [&] { return needs_mask(t); });
      } else {
        mainloop_prologue(rows, p, query, t, needs_mask(t));
      }
    } else {
      mainloop_prologue(rows, p, query, t, needs_mask(t));
    }
#pragma unroll 1
    for (--t; t >= 0 && needs_mask(t); --t)
      mainloop_step(o, rows, p, p, query, t, std::true_type{});
#pragma unroll 1
    for (; t >= 0; --t) mainloop_step(o, rows, p, p, query, t, std::false_type{});
    mainloop_tail(o, p, previous, query, n);
  }

  using Weights = uint32_t[C::block_n / 16][4];
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
  // The mainloop with ScoresAhead. The weights of two key tiles are live at a time; p0 and p1 hold
  // them in turn.
  __device__ __forceinline__ void mainloop_ahead(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                                 PreviousState& previous, const WorkTile<C>& query,
                                                 uint32_t n) {
    Weights p0, p1;
    // o must be multiplied by this when the PV product in flight is complete.
    float factor[2] = {1.0f, 1.0f};
    const int unmasked = uniform(query.limit(0));
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    int t = seen_ - 1;
    mainloop_prologue(rows, p0, query, t, needs_mask(t));
    bool pending = false;  // a PV product is in flight
    NextKeyTile next = peek_next_key_tile();
#pragma unroll 1
    for (;;) {
      if (--t < 0) return mainloop_tail_ahead(o, factor, p0, pending, previous, query, n);
      mainloop_step_ahead(o, rows, factor, p0, p1, pending, next, query, t, needs_mask(t));
      pending = true;
      if (--t < 0) return mainloop_tail_ahead(o, factor, p1, true, previous, query, n);
      mainloop_step_ahead(o, rows, factor, p1, p0, true, next, query, t, needs_mask(t));
    }
  }
  // previous_p: the weights of the previous tile. p: receives the weights of this tile. factor: on
  // entry the factor for o that the previous tile gave, on return that of this tile.
  __device__ __forceinline__ void mainloop_step_ahead(float (&o)[C::head_dim / 2],
                                                      RowStatistics& rows, float (&factor)[2],
                                                      const Weights& previous_p, Weights& p,
                                                      bool pending, NextKeyTile& next,
                                                      const WorkTile<C>& query, int t,
                                                      bool masked) {
    float s[C::block_n / 2];
    const uint32_t iteration = next.iteration;
    ++iteration_;
    const bool v_is_full = mbarrier_test(barriers_.v_full(stage_of<C::stages>(iteration - 1)),
                                         parity_of<C::stages>(iteration - 1));
    if (!next.k_is_full) await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, iteration);
    wgmma_wait<1>();
    pin_registers(o);
    if (pending) release_v(iteration - 2);
    rescale(o, factor);
    if (!v_is_full) await_v(iteration - 1);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, previous_p, iteration - 1);
    pass_turn();
    const bool positive = maxima_are_positive(rows);
    wgmma_wait<1>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if (masked) mask(s, query, t);
    next = peek_next_key_tile();
    softmax_step(s, rows, args_.scale_log2, factor, positive);
    pack_weights<Element>(s, p);
  }
  __device__ __forceinline__ void mainloop_tail_ahead(float (&o)[C::head_dim / 2],
                                                      const float (&factor)[2], const Weights& p,
                                                      bool pending, PreviousState& previous,
                                                      const WorkTile<C>& query, uint32_t n) {
    wgmma_wait<0>();
    pin_registers(o);
    if (pending) release_v(iteration_ - 1);
    rescale(o, factor);
    mainloop_tail(o, p, previous, query, n);
  }

  template <int Steps>
  __device__ __forceinline__ void mainloop_prologue(RowStatistics& rows, uint32_t (&p)[Steps][4],
                                                    const WorkTile<C>& query, int t, bool masked) {
    float s[8 * Steps];
    float factor[2];  // unused: there is no earlier tile
    ++iteration_;
    await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, C::scores_ahead ? uniform(iteration_) : iteration_);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if (masked) mask(s, query, t);
    softmax_step(s, rows, args_.scale_log2, factor, false);
    pack_weights<Element>(s, p);
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
    issue_output(o, p, C::scores_ahead ? uniform(iteration_) : iteration_);
    load_previous_state(previous, query);
    load_work_tile(n + 1);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(iteration_);
  }

  template <int S>
  static __device__ __forceinline__ void mask(float (&s)[S], const WorkTile<C>& query, int tile) {
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const int visible[2] = {query.limit(row) - tile * C::block_n,
                            query.limit(row + 8) - tile * C::block_n};
    mask_scores(s, visible);
  }

  const HopperArgs& all_;
  const StepArgs& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;      // the index of this warpgroup among the consumers
  int tiles_, seen_;     // WorkTile::tiles() and seen() of the current query tile
  uint32_t iteration_ = ~0u;  // the latest key tile, counted over all query tiles
};

}  // namespace baracuda::sm90
