// Host side of one instantiation of the sm90a backward kernels.
#pragma once

#include "attention/backward/family.h"
#include "attention/backward/row_kernels.cuh"
#include "attention/backward/sm90/kernel.cuh"
#include "attention/backward/sm90/statistics.cuh"
#include "attention/forward/sm90/tensor_map.h"
#include "common/kernel_load.h"

namespace baracuda::sm90::backward {

struct SumsInOrder {
  static constexpr int share = 8, log2_most = 3, log2_most_masked = 0;
};

template <typename C>
using Rows = RowKernels<typename C::Element, C::head_dim,
                        std::conditional_t<C::apart, ApartStatistics, SplitStatistics>,
                        C::ordered ? C::turn_words : stores_first<C>,
                        std::conditional_t<C::ordered, SumsInOrder, OneSum>>;

// Only the step kernel needs a set-up before its launch, for its shared memory.
template <typename C>
int32_t load_step_kernel() {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(step_kernel<C>), C::shared_bytes, ready);
}

template <typename C>
int32_t load_kernels() {
  int32_t status = load_tensor_map_encoder();
  if (status == BARACUDA_OK) status = load_step_kernel<C>();
  return status == BARACUDA_OK ? Rows<C>::load() : status;
}

template <typename C>
int32_t encode_maps(const BackwardParams& params, Args& args) {
  const StepParams& p = params.step;
  const bool is_bf16 = p.element == BARACUDA_BF16;
  int32_t status = encode_tensor_map(&args.k, "k", is_bf16, p.k, p.k_strides, p.batch, p.kv_heads,
                                     p.key_len, p.head_dim, C::block_n);
  if (status == BARACUDA_OK)
    status = encode_tensor_map(&args.v, "v", is_bf16, p.v, p.v_strides, p.batch, p.kv_heads,
                               p.key_len, p.head_dim, C::block_n);
  if (status != BARACUDA_OK || p.query_len == 0) return status;
  status = encode_tensor_map(&args.q, "q", is_bf16, p.q, p.q_strides, p.batch, p.heads, p.query_len,
                             p.head_dim, C::block_m);
  if (status == BARACUDA_OK)
    status = encode_tensor_map(&args.dy, "dy", is_bf16, params.dy, params.dy_strides, p.batch,
                               p.heads, p.query_len, p.head_dim, C::block_m);
  return status;
}

// The number of K/V heads in a section, whose key tiles are interleaved under a mask; without a
// mask all heads. Their key tiles should nearly fill the rounds of the grid. Of such numbers, it is
// the largest for which Q, dO and the sums of dQ fit an L2 of 40 MB or more (one head of a group
// runs at a time); if there is none, the smallest.
inline int64_t choose_section(const StepParams& p, int64_t key_tiles, int64_t grid) {
  constexpr int64_t l2_share = int64_t{32} << 20;
  const int64_t heads = p.batch * p.kv_heads;
  if (!borders_may_vary(p)) return heads;
  const int64_t bytes = p.query_len * p.head_dim * 8;
  const int64_t fitting = bytes > 0 && l2_share / bytes < heads ? l2_share / bytes : heads;
  const auto rounds_of = [&](int64_t section) { return (section * key_tiles + grid - 1) / grid; };
  const auto fills = [&](int64_t section) {
    const int64_t rounds = heads / section * rounds_of(section) + rounds_of(heads % section);
    return 20 * heads * key_tiles >= 19 * rounds * grid;
  };
  for (int64_t section = fitting; section > 0; --section)
    if (fills(section)) return section;
  for (int64_t section = fitting + 1; section < heads; ++section)
    if (fills(section)) return section;
  return heads;
}

// The number of blocks in a cluster. The next two functions count in clusters: the key tiles of a
// head, and the resident blocks.
template <typename C>
constexpr int cluster_of = C::pair ? 2 : 1;

template <typename C>
int64_t key_tiles_of(const StepParams& p) {
  constexpr int keys = cluster_of<C> * C::block_n;
  return (p.key_len + keys - 1) / keys;
}

template <typename C>
int64_t resident_blocks(const StepParams& p, int processors) {
  const int64_t needed = p.batch * p.kv_heads * key_tiles_of<C>(p);
  const int64_t left = (processors - p.sm_margin) / cluster_of<C>, places = left > 0 ? left : 1;
  return places < needed ? places : needed;
}

// Launches the step kernel: dK, dV and the additions to dQ.
template <typename C>
int32_t launch_gradients(const BackwardParams& params, cudaStream_t stream) {
  const StepParams& p = params.step;
  const typename Rows<C>::Scratch scratch(p);
  constexpr int cluster = cluster_of<C>;
  const int64_t key_tiles = key_tiles_of<C>(p);
  if (p.batch * p.kv_heads * key_tiles == 0) return BARACUDA_OK;
  Args args{};
  int32_t status = load_step_kernel<C>();
  if (status == BARACUDA_OK) status = encode_maps<C>(params, args);
  int processors = 0;
  if (status == BARACUDA_OK) status = count_multiprocessors(&processors);
  if constexpr (C::shifts) {
    if (status == BARACUDA_OK && scratch.tiles > 0)
      status = Rows<C>::launch_norm(params, processors, true, stream);
  }
  if (status != BARACUDA_OK) return status;
  args.statistics = scratch.statistics(p);
  args.dq = scratch.dq(p);
  args.turns = scratch.turns(p);
  args.norms = scratch.norms(p);
  args.no_row = static_cast<int>(scratch.query_tiles * C::block_m);
  args.dk = params.dk;
  args.dv = params.dv;
  args.dk_strides = params.dk_strides;
  args.dv_strides = params.dv_strides;
  args.q_map = p.q_map;
  args.k_map = p.k_map;
  args.device_maps = p.device_maps;
  const int64_t stride = p.q_map.stride;
  if (p.device_maps == nullptr && stride > 0 && stride >> 31 == 0)
    args.q_stride = make_divisor(stride);
  const int64_t grid = resident_blocks<C>(p, processors);
  args.kv_heads = make_divisor(p.kv_heads);
  const bool borders_vary = borders_may_vary(p);
  const bool rising = draws_shortest_first(borders_vary, p.heads / p.kv_heads);
  // With pairs, half as many heads run at a time.
  const int64_t fewest = rising ? (C::pair ? 1 : 2) : 4;
  const int64_t section =
      C::ordered ? choose_ordered_section(p.batch * p.kv_heads, p.heads / p.kv_heads, p.query_len,
                                          p.head_dim, borders_vary, fewest)
                 : choose_section(p, key_tiles, grid);
  args.section = make_divisor(section);
  args.section_tiles = make_divisor(section * key_tiles);
  args.tiles = make_divisor(key_tiles);
  args.heads = static_cast<int>(p.heads);
  args.group = static_cast<int>(p.heads / p.kv_heads);
  args.batch_kv_heads = static_cast<int>(p.batch * p.kv_heads);
  args.query_len = static_cast<int>(p.query_len);
  args.key_len = static_cast<int>(p.key_len);
  args.query_tiles = static_cast<int>(scratch.query_tiles);
  args.key_tiles = static_cast<int>(key_tiles);
  args.scale = static_cast<float>(p.scale);
  args.scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  args.borders_vary = borders_vary;
  args.shortest_first = rising;
  args.log2_sums = scratch.log2_sums;
  args.dq_sums = 1 << args.log2_sums;
  args.dq_tiles = static_cast<int>(scratch.tiles);
  args.dq_words = args.dq_tiles << args.log2_sums;
  args.gradients_f32 = params.kv_gradient_element == BARACUDA_F32;
  return launch_grid(step_kernel<C>, dim3(static_cast<unsigned>(grid * cluster)), C::threads,
                     C::shared_bytes, stream, true, args, cluster);
}

template <typename C>
constexpr BackwardFamily make_variant() {
  return BackwardFamily{
      [](const StepParams&) { return load_kernels<C>(); },
      [](const StepParams& p) { return typename Rows<C>::Scratch(p).bytes(); },
      [](const BackwardParams& params, void* stream) {
        return Rows<C>::launch_prepare(params, true, static_cast<cudaStream_t>(stream));
      },
      [](const BackwardParams& params, void* stream) {
        return launch_gradients<C>(params, static_cast<cudaStream_t>(stream));
      },
      [](const BackwardParams& params, StepGrid* grid) {
        int processors = 0;
        const int32_t status = count_multiprocessors(&processors);
        *grid = {cluster_of<C> * resident_blocks<C>(params.step, processors), 1};
        return status;
      },
      [](const BackwardParams& params, void* stream) {
        // With pairs, an overlapped launch costs more than it saves.
        return Rows<C>::launch_finish(params, !C::pair, static_cast<cudaStream_t>(stream));
      }};
}

}  // namespace baracuda::sm90::backward
