// What the consumer warpgroups of the sm90a kernel have in common: 64 query rows at a time, barriers,
// products, and the way of a query tile's sums to the state or the output. S = QK are the scores, P
// are their weights (state.cuh), and O is the sum of PV.
//
// A warpgroup owns all columns of S and O. So a row's statistics live in one quad of lanes, and P
// goes from the accumulators of QK to the A operand of PV in registers. The softmax of a key tile
// overlaps with two kinds of tensor-core work: PV of the previous key tile, and the products of the
// other warpgroups.
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
class ConsumerParts {
  using Element = typename C::Element;

 public:
  __device__ __forceinline__ ConsumerParts(const HopperArgs& args, uint32_t shared,
                                           const Barriers<C>& barriers, int group)
      : all_(args), args_(args.step), shared_(shared), barriers_(barriers), group_(group) {
    if (group == C::consumers - 1) pass_turn();  // consumer 0 issues first
  }

 protected:
  static __device__ __forceinline__ void clear(float (&o)[C::head_dim / 2]) {
#pragma unroll
    for (int i = 0; i < C::head_dim / 2; ++i) o[i] = 0.0f;
  }
  static __device__ __forceinline__ RowStatistics no_keys() {
    return RowStatistics{{-CUDART_INF_F, -CUDART_INF_F}, {0.0f, 0.0f}};
  }
  __device__ __forceinline__ OutputStage<C> output(uint32_t n) const {
    return OutputStage<C>(all_, shared_, group_, n);
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
  // Merges the sums of query tile n with the state, and stores the result as the state or, in the
  // last step, as the output.
  //
  // A step between the first and the last does not load o_acc. It rescales its sums to the m of the
  // state (state.cuh), and adds them to o_acc in memory. If the rescaling would multiply the
  // weights of a row by more than 2^16, the warp of that row instead loads o_acc, merges it with
  // its sums, and stores the result.
  __device__ __forceinline__ void epilogue(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                           const PreviousState& previous,
                                           const WorkTile<C>& tile, uint32_t n) const {
    const StateRows<C> state(args_, tile);
    if constexpr (Last) {
      if constexpr (!First) merge_previous_state(o, rows, previous, state);
      state.finish(o, rows, output(n));
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
  // About Q of query tile n. It may be left out where Q has one place (config.h).
  __device__ __forceinline__ void await_q(uint32_t n) const {
    mbarrier_wait(barriers_.q_full(group_, stage_of<C::q_stages>(n)), parity_of<C::q_stages>(n));
  }
  __device__ __forceinline__ void release_q(uint32_t n = 0) const {
    mbarrier_arrive(barriers_.q_empty(group_, stage_of<C::q_stages>(n)));
  }

  // Issues QK of iteration n, for the first 2 * S columns of its key tile.
  template <int S>
  __device__ __forceinline__ void issue_scores(float (&s)[S], uint32_t n,
                                               uint32_t query_tile = 0) const {
    const int stage = stage_of<C::stages>(n);
    const uint64_t q_tile = wgmma_descriptor(shared_ + C::q_offset(group_, query_tile), 0);
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

  // The weights of the first key tile of query tile n, with which no other product of the warpgroup
  // overlaps.
  template <int Steps>
  __device__ __forceinline__ void first_weights(RowStatistics& rows, uint32_t (&p)[Steps][4],
                                                const WorkTile<C>& query, uint32_t n, int t,
                                                bool masked) {
    float s[8 * Steps];
    float factor[2];  // unused: there is no earlier tile
    ++iteration_;
    await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s, C::scores_ahead ? uniform(iteration_) : iteration_, n);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release_k();
    if (!C::stages_in_q && t == 0) release_q();
    if (masked) mask(s, query, t);
    softmax_step(s, rows, args_.scale_log2, factor, false);
    pack_weights<Element>(s, p);
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
