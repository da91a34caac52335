// The computing side of the sm90a kernel: a warpgroup with 64 query rows at a time.
//
// It owns all columns of S and O, so a row's statistics live in one quad of lanes and P goes from
// the accumulators of QK to the A operand of PV without leaving registers. The softmax of a key
// tile runs beside the tensor cores twice: PV of the tile before is still in flight, and so are the
// products of the other warpgroups.
//
// It may ask for scores ahead (Config): a warpgroup is bound by its own chain of products, softmax
// and products. Weights that have registers of their own, while PV still reads those of the tile
// before, take packing, the wait for PV and most of the rescaling of O out of that chain.
#pragma once

#include <math_constants.h>

#include <type_traits>

#include "attention/forward/sm90/barriers.cuh"
#include "attention/forward/sm90/softmax.cuh"
#include "attention/forward/sm90/state.cuh"
#include "common/dependent_launch.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
class Consumer {
  using Element = typename C::Element;

 public:
  __device__ __forceinline__ Consumer(const StepArgs& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : args_(args), shared_(shared), barriers_(barriers), group_(group) {
    if (group == C::consumers - 1) pass_turn();  // the first warpgroup may begin
  }

  __device__ __forceinline__ void run() {
    float o[C::head_dim / 2];
    RowStatistics rows;
    look_at(0);
#pragma unroll 1
    for (uint32_t n = 0; uniform(tiles_) >= 0; ++n) {
      const Slot<C> tile(shared_, group_, n);
#pragma unroll
      for (int i = 0; i < C::head_dim / 2; ++i) o[i] = 0.0f;
      rows = RowStatistics{{-CUDART_INF_F, -CUDART_INF_F}, {0.0f, 0.0f}};
      await_q(n);
      seen_ = uniform(seen_);
      pass_by(uniform(tiles_) - seen_);
      Before before;
      if (seen_ > 0) {
        if constexpr (C::scores_ahead) {
          fold_ahead(o, rows, before, tile, n);
        } else {
          fold(o, rows, before, tile, n);
        }
      } else {
        release_q();
        load_before(before, tile);
        look_at(n + 1);
      }
      end(o, rows, before, tile);
    }
  }

 private:
  // The state of the step before, which is wanted at a tile's end: up to then that step may still
  // be running. o: where there are registers to read it ahead.
  static constexpr bool reads_ahead = Last && C::head_dim <= 128;
  struct Before {
    RowStatistics rows;
    typename StateRows<C>::Fragments o;
  };
  __device__ __forceinline__ void load_before(Before& before, const Slot<C>& tile) const {
    if constexpr (!First) {
      await_grids_before();
      const StateRows<C> state(args_, tile);
      state.load_statistics(before.rows);
      if constexpr (reads_ahead) state.load(before.o);
    }
  }
  // A step between the first and the last does not load o_acc: its share, brought under the maximum
  // that the state was begun with, is added where it lies. Not so where a warp's scores rose far.
  __device__ __forceinline__ void end(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                      const Before& before, const Slot<C>& tile) const {
    const StateRows<C> state(args_, tile);
    if constexpr (Last) {
      if constexpr (!First) take_in(o, rows, before, state);
      state.finish(o, rows);
      return;
    }
    float factor[2];
    if constexpr (First) {
      state.save(o);
    } else if (join_statistics(rows, before.rows, args_.scale_log2, factor)) {
#pragma unroll
      for (int i = 0; i < C::head_dim / 2; ++i) o[i] *= factor[i / 2 % 2];
      state.save_sum(o);
    } else {
      take_in(o, rows, before, state);
      state.save(o);
    }
    state.save_statistics(rows);
  }
  __device__ __forceinline__ void take_in(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                          const Before& before, const StateRows<C>& state) const {
    const Factors factors = merge_statistics(rows, before.rows, args_.scale_log2);
    if constexpr (reads_ahead) {
      state.add(o, factors, before.o);
    } else {
      state.add(o, factors);
    }
  }

  // Where the configuration says so, warpgroups issue their products in a fixed order, so that
  // one's softmax meets the others' products.
  __device__ __forceinline__ void await_turn() const {
    if constexpr (C::take_turns) named_barrier_sync(1 + group_, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (C::take_turns) named_barrier_arrive(1 + (group_ + 1) % C::consumers, 256);
  }

  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }
  // K of this turn, and V of the n-th: the one before, or in the end this one.
  __device__ __forceinline__ void await_k() const {
    mbarrier_wait(barriers_.k_full(stage_of<C::stages>(turn_)), parity_of<C::stages>(turn_));
  }
  __device__ __forceinline__ void release_k() const {
    release(barriers_.k_empty(stage_of<C::stages>(turn_)));
  }
  __device__ __forceinline__ void await_v(uint32_t n) const {
    mbarrier_wait(barriers_.v_full(stage_of<C::stages>(n)), parity_of<C::stages>(n));
  }
  __device__ __forceinline__ void release_v(uint32_t n) const {
    release(barriers_.v_empty(stage_of<C::stages>(n)));
  }
  // The n-th query tile comes next. Asked while products run; the slot was filled long before.
  __device__ __forceinline__ void look_at(uint32_t n) {
    mbarrier_wait(barriers_.slot_full(group_, n % C::slots), parity_of<C::slots>(n));
    const Slot<C> tile(shared_, group_, n);
    tiles_ = tile.tiles();
    seen_ = tile.seen();
  }
  __device__ __forceinline__ void await_q(uint32_t n) const {
    mbarrier_wait(barriers_.q_full(group_), parity_of<1>(n));
  }
  __device__ __forceinline__ void release_q() const {
    mbarrier_arrive(barriers_.q_empty(group_));
  }

  // Of the first columns of a key tile, as many as s has room for.
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

  // Key tiles that only other warpgroups see.
  __device__ __forceinline__ void pass_by(int tiles) {
#pragma unroll 1
    for (; tiles > 0; --tiles) {
      ++turn_;
      await_turn();
      pass_turn();
      await_k();
      release_k();
      await_v(turn_);
      release_v(turn_);
    }
  }

  // Folds the keys of a query tile that the warpgroup sees into o: from the last key tile to the
  // first, the scores of each beside the weights and V of the one before.
  __device__ __forceinline__ void fold(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                       Before& before, const Slot<C>& query, uint32_t n) {
    uint32_t p[C::block_n / 16][4];
    const int unmasked = query.limit(0);
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    int t = seen_ - 1;
    if constexpr (C::last_n < C::block_n) {
      // Few keys in the last tile: as many columns as they need, while nothing else runs.
      if (query.limit(C::group_m - 1) - t * C::block_n <= C::last_n) {
        uint32_t few[C::last_n / 16][4];
        begin(rows, few, query, t, needs_mask(t));
        if (--t < 0) return finish(o, few, before, query, n);
        both(o, rows, few, p, query, t, [&] { return needs_mask(t); });
      } else {
        begin(rows, p, query, t, needs_mask(t));
      }
    } else {
      begin(rows, p, query, t, needs_mask(t));
    }
#pragma unroll 1
    for (--t; t >= 0 && needs_mask(t); --t) both(o, rows, p, p, query, t, std::true_type{});
#pragma unroll 1
    for (; t >= 0; --t) both(o, rows, p, p, query, t, std::false_type{});
    finish(o, p, before, query, n);
  }

  using Weights = uint32_t[C::block_n / 16][4];
  // The turn to come, the same in all lanes, and whether its K was seen to be there. Looked at
  // beside the softmax, so that the products need not wait for the answers.
  struct Coming {
    uint32_t turn;
    bool k_is_full;
  };
  __device__ __forceinline__ Coming look_ahead() const {
    const uint32_t turn = uniform(turn_ + 1);
    return {turn, mbarrier_test(barriers_.k_full(stage_of<C::stages>(turn)),
                                parity_of<C::stages>(turn))};
  }
  // As fold, with scores ahead. The weights of two tiles are alive at a time and change places.
  __device__ __forceinline__ void fold_ahead(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                             Before& before, const Slot<C>& query, uint32_t n) {
    Weights p0, p1;
    float factor[2] = {1.0f, 1.0f};
    const int unmasked = uniform(query.limit(0));
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    int t = seen_ - 1;
    begin(rows, p0, query, t, needs_mask(t));
    bool pending = false;  // products with V, which o and factor wait for
    Coming next = look_ahead();
#pragma unroll 1
    for (;;) {
      if (--t < 0) return finish_ahead(o, factor, p0, pending, before, query, n);
      both_ahead(o, rows, factor, p0, p1, pending, next, query, t, needs_mask(t));
      pending = true;
      if (--t < 0) return finish_ahead(o, factor, p1, true, before, query, n);
      both_ahead(o, rows, factor, p1, p0, true, next, query, t, needs_mask(t));
    }
  }
  // p_before: the weights of the tile before, by which factor came; p: those of this one.
  __device__ __forceinline__ void both_ahead(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                             float (&factor)[2], const Weights& p_before,
                                             Weights& p, bool pending, Coming& next,
                                             const Slot<C>& query, int t, bool masked) {
    float s[C::block_n / 2];
    const uint32_t turn = next.turn;
    ++turn_;
    const bool v_is_full = mbarrier_test(barriers_.v_full(stage_of<C::stages>(turn - 1)),
                                         parity_of<C::stages>(turn - 1));
    if (!next.k_is_full) await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, turn);
    wgmma_wait<1>();
    pin_registers(o);
    if (pending) release_v(turn - 2);
    rescale(o, factor);
    if (!v_is_full) await_v(turn - 1);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, p_before, turn - 1);
    pass_turn();
    wgmma_wait<1>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if (masked) mask(s, query, t);
    next = look_ahead();
    softmax_step(s, rows, args_.scale_log2, factor);
    pack_weights<Element>(s, p);
  }
  __device__ __forceinline__ void finish_ahead(float (&o)[C::head_dim / 2],
                                               const float (&factor)[2], const Weights& p,
                                               bool pending, Before& before, const Slot<C>& query,
                                               uint32_t n) {
    wgmma_wait<0>();
    pin_registers(o);
    if (pending) release_v(turn_ - 1);
    rescale(o, factor);
    finish(o, p, before, query, n);
  }

  template <int Steps>
  __device__ __forceinline__ void begin(RowStatistics& rows, uint32_t (&p)[Steps][4],
                                        const Slot<C>& query, int t, bool masked) {
    float s[8 * Steps];
    float factor[2];  // nothing came before
    ++turn_;
    await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, C::scores_ahead ? uniform(turn_) : turn_);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if (masked) mask(s, query, t);
    softmax_step(s, rows, args_.scale_log2, factor);
    pack_weights<Element>(s, p);
  }

  // p: the weights of the tile before, and then those of this one. Masked: std::true_type,
  // std::false_type, or a function to ask.
  template <int Steps, typename Masked>
  __device__ __forceinline__ void both(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                       const uint32_t (&p_before)[Steps][4],
                                       uint32_t (&p)[C::block_n / 16][4], const Slot<C>& query,
                                       int t, Masked masked) {
    float s[C::block_n / 2];
    float factor[2];
    ++turn_;
    await_k();
    await_turn();
    pin_registers(s);
    pin_registers(o);
    wgmma_fence();
    issue_scores(s, turn_);
    await_v(turn_ - 1);
    wgmma_fence();
    issue_output(o, p_before, turn_ - 1);
    pass_turn();
    wgmma_wait<1>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if constexpr (std::is_same_v<Masked, std::true_type>) {
      mask(s, query, t);
    } else if constexpr (!std::is_same_v<Masked, std::false_type>) {
      if (masked()) mask(s, query, t);
    }
    softmax_step(s, rows, args_.scale_log2, factor);
    hold_until_summed(rows, barriers_.base);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(turn_ - 1);
    rescale(o, factor);
    pack_weights<Element>(s, p);
  }

  template <int Steps>
  __device__ __forceinline__ void finish(float (&o)[C::head_dim / 2],
                                         const uint32_t (&p)[Steps][4], Before& before,
                                         const Slot<C>& query, uint32_t n) {
    await_v(turn_);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, p, C::scores_ahead ? uniform(turn_) : turn_);
    load_before(before, query);
    look_at(n + 1);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(turn_);
  }

  template <int S>
  static __device__ __forceinline__ void mask(float (&s)[S], const Slot<C>& query, int tile) {
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const int visible[2] = {query.limit(row) - tile * C::block_n,
                            query.limit(row + 8) - tile * C::block_n};
    mask_scores(s, visible);
  }

  const StepArgs& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;      // of the consumer warpgroups
  int tiles_, seen_;     // of the query tile at hand: its key tiles, and those that we see
  uint32_t turn_ = ~0u;  // key tile whose scores were taken last, counted over all query tiles
};

}  // namespace baracuda::sm90
