// The sm90a attention step: wgmma on tiles that the copy engine brings in.
//
// A block is resident for the whole step. Warpgroup 0 copies; every other warpgroup owns 64 query
// rows and all columns of S and O, so a row's statistics live in one quad of lanes and P goes from
// the accumulators of QK to the A operand of PV without leaving registers. The softmax of a key
// tile runs beside the tensor cores twice: PV of the tile before is still in flight, and so are the
// products of the other warpgroups.
#pragma once

#include <math_constants.h>

#include <type_traits>

#include "attention/sm90/producer.cuh"
#include "attention/sm90/softmax.cuh"
#include "attention/sm90/state.cuh"
#include "common/cp_async.cuh"
#include "common/dependent_launch.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
class Consumer {
  using Element = typename C::Element;
  static constexpr int scores = C::block_n / 2;
  static constexpr bool staged = C::stages_state && !(First && Last);

 public:
  __device__ __forceinline__ Consumer(const StepArgs& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : args_(args), shared_(shared), barriers_(barriers), group_(group) {
    if (group == C::consumers - 1) pass_turn();  // the first warpgroup may begin
  }

  __device__ __forceinline__ void run() {
    float o[C::head_dim / 2];
    RowStatistics rows;
    float m_before[2];
    uint32_t n = 0;
#pragma unroll 1
    for (Slot<C> tile = await_slot(n); tile.tiles() >= 0; tile = await_slot(++n)) {
      begin(o, rows, tile);
      m_before[0] = rows.m[0];
      m_before[1] = rows.m[1];
      await_q(n);
      pass_by(tile.tiles() - tile.seen());
      if (tile.seen() > 0) {
        fold(o, rows, tile);
      } else {
        release_q();
      }
      end(o, rows, m_before, tile, n);
    }
  }

 private:
  __device__ __forceinline__ void begin(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                        const Slot<C>& tile) const {
    if constexpr (First || staged) {
#pragma unroll
      for (int i = 0; i < C::head_dim / 2; ++i) o[i] = 0.0f;
    }
    if constexpr (First) {
      rows = RowStatistics{{-CUDART_INF_F, -CUDART_INF_F}, {0.0f, 0.0f}};
    } else if constexpr (staged) {
      StateRows<C>(args_, tile).load_statistics(rows);
    } else {
      StateRows<C>(args_, tile).load(o, rows);
    }
  }
  // m_before: the maxima that the tile began with.
  __device__ __forceinline__ void end(float (&o)[C::head_dim / 2], const RowStatistics& rows,
                                      const float (&m_before)[2], const Slot<C>& tile,
                                      uint32_t n) const {
    const StateRows<C> state(args_, tile);
    const uint32_t buffer = shared_ + C::state_offset + group_ * C::state_bytes;
    if constexpr (staged) {
      mbarrier_wait(barriers_.state_full(group_), parity_of<1>(n));
      if constexpr (!First) state.add_staged(o, rows, m_before, buffer);
    }
    if constexpr (Last) {
      if constexpr (staged) release_state();
      state.finish(o, rows);
    } else if constexpr (staged) {
      state.stage(o, buffer);
      fence_async_proxy();
      release_state();
      state.save_statistics(rows);
    } else {
      state.save(o, rows);
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
  __device__ __forceinline__ Slot<C> await_slot(uint32_t n) const {
    mbarrier_wait(barriers_.slot_full(group_, n % C::slots), parity_of<C::slots>(n));
    return Slot<C>(shared_, group_, n);
  }
  __device__ __forceinline__ void await_q(uint32_t n) const {
    mbarrier_wait(barriers_.q_full(group_), parity_of<1>(n));
  }
  __device__ __forceinline__ void release_q() const {
    mbarrier_arrive(barriers_.q_empty(group_));
  }

  __device__ __forceinline__ void release_state() const {
    __syncwarp();
    release(barriers_.state_done(group_));
  }

  __device__ __forceinline__ void issue_scores(float (&s)[scores]) const {
    const int stage = stage_of<C::stages>(turn_);
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
  __device__ __forceinline__ void issue_output(float (&o)[C::head_dim / 2],
                                               const uint32_t (&p)[C::block_n / 16][4],
                                               uint32_t n) const {
    const int stage = stage_of<C::stages>(n);
    const uint64_t v_tile =
        wgmma_descriptor(shared_ + C::v_offset + stage * C::kv_bytes, C::kv_block_bytes);
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i) wgmma<Element>(o, p[i], v_tile + (i * 2048 >> 4));
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

  // Folds the keys of a query tile that the warpgroup sees into o.
  __device__ __forceinline__ void fold(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                       const Slot<C>& query) {
    float s[scores];
    float factor[2];
    uint32_t p[C::block_n / 16][4];
    const int unmasked = query.limit(0);
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    const auto mask = [&](int tile) {
      const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
      const int visible[2] = {query.limit(row) - tile * C::block_n,
                              query.limit(row + 8) - tile * C::block_n};
      mask_scores(s, visible);
    };
    int t = query.seen() - 1;

    ++turn_;
    await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release_k();
    if (t == 0) release_q();
    if (needs_mask(t)) mask(t);
    softmax_step(s, rows, args_.scale_log2, factor);
    if constexpr (!First) rescale(o, factor);
    pack_weights<Element>(s, p);

    // Scores of tile t beside the weights and V of the tile before.
    const auto both = [&](auto masked) {
      ++turn_;
      await_k();
      await_turn();
      pin_registers(s);
      pin_registers(o);
      wgmma_fence();
      issue_scores(s);
      await_v(turn_ - 1);
      wgmma_fence();
      issue_output(o, p, turn_ - 1);
      pass_turn();
      wgmma_wait<1>();
      pin_registers(s);
      release_k();
      if (t == 0) release_q();
      if constexpr (decltype(masked)::value) mask(t);
      softmax_step(s, rows, args_.scale_log2, factor);
      hold_until_summed(rows, barriers_.base);
      wgmma_wait<0>();
      pin_registers(o);
      release_v(turn_ - 1);
      rescale(o, factor);
      pack_weights<Element>(s, p);
    };
#pragma unroll 1
    for (--t; t >= 0 && needs_mask(t); --t) both(std::true_type{});
#pragma unroll 1
    for (; t >= 0; --t) both(std::false_type{});

    await_v(turn_);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, p, turn_);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(turn_);
  }

  const StepArgs& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;  // of the consumer warpgroups
  uint32_t turn_ = ~0u;  // key tile whose scores were taken last, counted over all query tiles
};

template <typename C, bool First, bool Last>
__global__ void __launch_bounds__(C::threads, 1)
    step_kernel(const __grid_constant__ HopperArgs args) {
  extern __shared__ __align__(1024) char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  const Barriers<C> barriers{shared + C::barrier_offset};
  if (threadIdx.x == 0) {
    barriers.init();
    if (args.step.key_len > 0) {  // else the maps are empty
      tma_prefetch_map(&args.q);
      tma_prefetch_map(&args.k);
      tma_prefetch_map(&args.v);
    }
  }
  __syncthreads();
  // The step before may still be running, up to here.
  launch_dependent_grids();
  await_grids_before();
  // The same in all lanes, which the compiler cannot see.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (warp < 4) {
    give_registers_back<C::producer_registers>();
    if (warp == 0) {
      KeyProducer<C, First, Last>(args, shared, barriers).run();
    } else if (warp <= C::consumers) {
      produce_queries<C, First, Last>(args, shared, barriers, warp - 1);
    }
  } else {
    take_registers<C::consumer_registers>();
    Consumer<C, First, Last>(args.step, shared, barriers, warp / 4 - 1).run();
  }
}

}  // namespace baracuda::sm90
