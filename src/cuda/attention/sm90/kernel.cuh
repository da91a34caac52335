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
#include "common/wgmma.cuh"

namespace baracuda::sm90 {

template <typename C>
struct Consumer {
  using Element = typename C::Element;
  static constexpr int scores = C::block_n / 2;

  const Barriers<C>& barriers;
  const uint32_t shared;
  const int group;  // of the consumer warpgroups
  uint32_t turn = 0;  // key tiles whose scores were taken, in all query tiles
  uint32_t q_parity = 0;

  __device__ __forceinline__ Consumer(uint32_t shared_, const Barriers<C>& barriers_, int group_)
      : barriers(barriers_), shared(shared_), group(group_) {
    if (group == C::consumers - 1) pass_turn();  // the first warpgroup may begin
  }

  // Where the configuration says so, warpgroups issue their products in a fixed order, so that one's
  // softmax meets the others' products.
  __device__ __forceinline__ void await_turn() const {
    if constexpr (C::take_turns) named_barrier_sync(1 + group, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (C::take_turns) named_barrier_arrive(1 + (group + 1) % C::consumers, 256);
  }

  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }
  // K of this turn, and V of the n-th: the one before, or in the end this one.
  __device__ __forceinline__ void await_k() const {
    mbarrier_wait(barriers.k_full(stage_of<C::stages>(turn)), parity_of<C::stages>(turn));
  }
  __device__ __forceinline__ void release_k() const {
    release(barriers.k_empty(stage_of<C::stages>(turn)));
  }
  __device__ __forceinline__ void await_v(uint32_t n) const {
    mbarrier_wait(barriers.v_full(stage_of<C::stages>(n)), parity_of<C::stages>(n));
  }
  __device__ __forceinline__ void release_v(uint32_t n) const {
    release(barriers.v_empty(stage_of<C::stages>(n)));
  }

  __device__ __forceinline__ void issue_scores(float (&s)[scores]) const {
    const uint64_t q_tile = wgmma_descriptor(shared + group * 64 * 128, 0);
    const uint64_t k_tile =
        wgmma_descriptor(shared + C::k_offset + stage_of<C::stages>(turn) * C::kv_bytes, 0);
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
    const uint64_t v_tile = wgmma_descriptor(
        shared + C::v_offset + stage_of<C::stages>(n) * C::kv_bytes, C::kv_block_bytes);
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i) wgmma<Element>(o, p[i], v_tile + (i * 2048 >> 4));
    wgmma_commit();
  }

  // Key tiles that only other warpgroups see.
  __device__ __forceinline__ void pass_by(int tiles) {
#pragma unroll 1
    for (; tiles > 0; --tiles) {
      await_turn();
      pass_turn();
      await_k();
      release_k();
      await_v(turn);
      release_v(turn);
      ++turn;
    }
  }

  // Folds the keys of one query tile into o. `tiles` are copied, of which this warpgroup sees the
  // first `seen`; row r sees limit[r] keys, and every row at least `unmasked`.
  __device__ __forceinline__ void fold(float (&o)[C::head_dim / 2], RowStatistics& rows, int tiles,
                                       int seen, const int (&limit)[2], int unmasked,
                                       float scale_log2) {
    if (tiles == 0) return;
    mbarrier_wait(barriers.q_full(), q_parity);
    q_parity ^= 1;
    pass_by(tiles - seen);
    if (seen > 0) {
      fold_seen(o, rows, seen, limit, unmasked, scale_log2);
    } else {
      release(barriers.q_empty());
    }
  }

  __device__ __forceinline__ void fold_seen(float (&o)[C::head_dim / 2], RowStatistics& rows,
                                            int seen, const int (&limit)[2], int unmasked,
                                            float scale_log2) {
    float s[scores];
    float factor[2];
    uint32_t p[C::block_n / 16][4];
    const auto needs_mask = [&](int tile) { return (tile + 1) * C::block_n > unmasked; };
    const auto mask = [&](int tile) {
      const int visible[2] = {limit[0] - tile * C::block_n, limit[1] - tile * C::block_n};
      mask_scores(s, visible);
    };
    int t = seen - 1;

    await_k();
    await_turn();
    pin_registers(s);
    wgmma_fence();
    issue_scores(s);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release_k();
    if (needs_mask(t)) mask(t);
    softmax_step(s, rows, scale_log2, factor);
    rescale(o, factor);
    pack_weights<Element>(s, p);

    // Scores of tile t beside the weights and V of the tile before.
    const auto both = [&](auto masked) {
      ++turn;
      await_k();
      await_turn();
      pin_registers(s);
      pin_registers(o);
      wgmma_fence();
      issue_scores(s);
      await_v(turn - 1);
      wgmma_fence();
      issue_output(o, p, turn - 1);
      pass_turn();
      wgmma_wait<1>();
      pin_registers(s);
      release_k();
      if constexpr (decltype(masked)::value) mask(t);
      softmax_step(s, rows, scale_log2, factor);
      hold_until_summed(rows, barriers.base);
      wgmma_wait<0>();
      pin_registers(o);
      release_v(turn - 1);
      rescale(o, factor);
      pack_weights<Element>(s, p);
    };
#pragma unroll 1
    for (--t; t >= 0 && needs_mask(t); --t) both(std::true_type{});
#pragma unroll 1
    for (; t >= 0; --t) both(std::false_type{});

    release(barriers.q_empty());
    await_v(turn);
    pin_registers(o);
    wgmma_fence();
    issue_output(o, p, turn);
    wgmma_wait<0>();
    pin_registers(o);
    release_v(turn);
    ++turn;
  }
};

template <typename C, bool First, bool Last>
__device__ __forceinline__ void consume(const StepArgs& args, Consumer<C>& consumer) {
  const int warp_row = consumer.group * 64 + threadIdx.x % 128 / 32 * 16;
  const int lane = threadIdx.x % 32;
  const auto tiles_of = [](int keys) { return (keys + C::block_n - 1) / C::block_n; };
  Tile tile;
  for (TileWalk walk; walk.next(args, C::block_m, tile);) {
    // A lane works out the limit of one row: of the warp's, and of those that bound the tile, the
    // warpgroup's last and its first.
    const int offset = lane < 16    ? warp_row + lane
                       : lane == 16 ? C::block_m - 1
                                    : consumer.group * 64 + (lane == 17 ? 63 : 0);
    const int bound = row_limit(args, int64_t{tile.row0} + offset);
    const int tiles = tiles_of(__shfl_sync(0xffffffffu, bound, 16));
    const bool outside = tile.row0 + consumer.group * 64 >= args.query_len;
    const int seen = outside ? 0 : tiles_of(__shfl_sync(0xffffffffu, bound, 17));
    const int unmasked = __shfl_sync(0xffffffffu, bound, 18);
    const int limit[2] = {__shfl_sync(0xffffffffu, bound, lane / 4),
                          __shfl_sync(0xffffffffu, bound, lane / 4 + 8)};
    if constexpr (!First && !Last) {
      if (tiles == 0) continue;  // the state stays as it is
    }
    float o[C::head_dim / 2];
    RowStatistics rows;
    if constexpr (First) {
#pragma unroll
      for (int i = 0; i < C::head_dim / 2; ++i) o[i] = 0.0f;
      rows = RowStatistics{{-CUDART_INF_F, -CUDART_INF_F}, {0.0f, 0.0f}};
    } else {
      StateRows<C>(args, tile, tile.row0 + warp_row).load(o, rows);
    }
    consumer.fold(o, rows, tiles, seen, limit, unmasked, args.scale_log2);
    tile.forget();
    const StateRows<C> state(args, tile, tile.row0 + warp_row);
    if constexpr (Last) {
      state.finish(o, rows);
    } else {
      state.save(o, rows);
    }
  }
}

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
  // The same in all lanes, which the compiler cannot see.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    give_registers_back<C::producer_registers>();
    if (threadIdx.x == 0) produce<C>(args, shared, barriers);
  } else {
    take_registers<C::consumer_registers>();
    Consumer<C> consumer(shared, barriers, warpgroup - 1);
    consume<C, First, Last>(args.step, consumer);
  }
}

}  // namespace baracuda::sm90
