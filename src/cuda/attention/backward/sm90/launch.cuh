// Host side of one instantiation of the sm90a backward kernels.
#pragma once

#include "attention/backward/family.h"
#include "attention/backward/sm90/finish.cuh"
#include "attention/backward/sm90/kernel.cuh"
#include "attention/backward/sm90/prepare.cuh"
#include "attention/forward/sm90/tensor_map.h"
#include "common/kernel_load.h"

namespace baracuda::sm90::backward {

// The scratch: lse and delta of every query tile, then its sums of dQ, and what the shift is made of.
// Of an ordered call there follows a counter of key tiles, then a word for each query tile.
template <typename C>
struct Scratch {
  int64_t query_tiles;  // of a head
  int64_t tiles;

  explicit Scratch(const StepParams& p)
      : query_tiles((p.query_len + C::block_m - 1) / C::block_m),
        tiles(p.batch * p.heads * query_tiles) {}
  int64_t bytes() const {
    return tiles * (C::statistics_bytes + 4 * C::dq_floats) + (C::shifts ? norms_bytes : 0) +
           (C::ordered ? (4 * (tiles + 1) + 15) / 16 * 16 : 0);
  }
  char* statistics(const StepParams& p) const { return static_cast<char*>(p.state); }
  float* dq(const StepParams& p) const {
    return reinterpret_cast<float*>(statistics(p) + tiles * C::statistics_bytes);
  }
  float* norms(const StepParams& p) const { return dq(p) + tiles * C::dq_floats; }
  uint32_t* turns(const StepParams& p) const {
    if (!C::ordered || tiles == 0) return nullptr;
    char* const end = reinterpret_cast<char*>(norms(p)) + (C::shifts ? norms_bytes : 0);
    return reinterpret_cast<uint32_t*>(end) + 1;
  }
};

// The one kernel that cannot be launched before it is set up: it has more shared memory than others.
template <typename C>
int32_t load_step_kernel() {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(step_kernel<C>), C::shared_bytes, ready);
}

template <typename C>
int32_t load_kernels() {
  static ReadyDevices ready[3];
  using Element = typename C::Element;
  int32_t status = load_tensor_map_encoder();
  if (status == BARACUDA_OK) status = load_step_kernel<C>();
  const auto load = [&](auto* kernel, ReadyDevices& devices) {
    if (status == BARACUDA_OK)
      status = ensure_loaded(reinterpret_cast<const void*>(kernel), 0, devices);
  };
  load(prepare_kernel<Element, C::head_dim, C::block_m>, ready[0]);
  load(finish_kernel<Element, C::head_dim, C::block_m>, ready[1]);
  if constexpr (C::shifts) load(norm_kernel<Element, C::head_dim>, ready[2]);
  return status;
}

template <typename C>
int32_t launch_prepare(const BackwardParams& params, cudaStream_t stream) {
  const StepParams& p = params.step;
  const Scratch<C> scratch(p);
  if (scratch.tiles == 0) return BARACUDA_OK;
  if constexpr (C::shifts) {
    const int32_t status = check_cuda(
        cudaMemsetAsync(scratch.norms(p), 0, norms_bytes, stream), "cudaMemsetAsync");
    if (status != BARACUDA_OK) return status;
  }
  PrepareArgs args{};
  args.y = p.y;
  args.dy = params.dy;
  args.lse = static_cast<const float*>(p.lse);
  args.dlse = static_cast<const float*>(params.dlse);
  args.statistics = scratch.statistics(p);
  args.dq = scratch.dq(p);
  args.turns = scratch.turns(p);
  args.norms = scratch.norms(p);
  args.y_strides = p.y_strides;
  args.dy_strides = params.dy_strides;
  args.lse_strides = params.lse_strides;
  args.dlse_strides = params.dlse_strides;
  args.heads = static_cast<int>(p.heads);
  args.query_len = static_cast<int>(p.query_len);
  args.query_tiles = static_cast<int>(scratch.query_tiles);
  args.reciprocal_scale = static_cast<float>(1.0 / p.scale);
  return launch_grid(prepare_kernel<typename C::Element, C::head_dim, C::block_m>,
                     dim3(static_cast<unsigned>(scratch.tiles)), prepare_threads, 0, stream, true,
                     args);
}

template <typename C>
int32_t launch_finish(const BackwardParams& params, cudaStream_t stream) {
  const StepParams& p = params.step;
  const Scratch<C> scratch(p);
  if (scratch.tiles == 0) return BARACUDA_OK;
  FinishArgs args{};
  // A call of one step without keys needs no scratch.
  args.sums = p.key_len == 0 && is_single_step(p) ? nullptr : scratch.dq(p);
  args.turns = args.sums == nullptr ? nullptr : scratch.turns(p);
  args.dq = params.dq;
  args.dq_strides = params.dq_strides;
  args.heads = static_cast<int>(p.heads);
  args.query_len = static_cast<int>(p.query_len);
  args.query_tiles = static_cast<int>(scratch.query_tiles);
  args.scale = static_cast<float>(p.scale);
  // Beside a pair's step, blocks of it that wait for its end cost more than they save.
  return launch_grid(finish_kernel<typename C::Element, C::head_dim, C::block_m>,
                     dim3(static_cast<unsigned>(scratch.tiles)), finish_threads, 0, stream, !C::pair,
                     args);
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

// Heads whose key tiles are mixed under a mask: as many as keep Q, dO and the sums of dQ in an L2
// of 40 MB or more (of a group one head is at work at a time), but so many that rounds of the grid
// are nearly full.
inline int64_t choose_section(const StepParams& p, int64_t key_tiles, int64_t grid) {
  constexpr int64_t l2_share = int64_t{32} << 20;
  const int64_t heads = p.batch * p.kv_heads;
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0) return heads;
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

// The key tiles of a head, and the blocks (or clusters) that work through those of all heads.
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

template <typename C>
int32_t launch_norm(const BackwardParams& params, int processors, cudaStream_t stream) {
  const StepParams& p = params.step;
  constexpr int rows_at_once = norm_threads / (C::head_dim / 8);
  NormArgs args{};
  args.v = p.v;
  args.found = Scratch<C>(p).norms(p);
  args.strides = p.v_strides;
  args.rows = p.batch * p.kv_heads * p.key_len;
  args.kv_heads = static_cast<int>(p.kv_heads);
  args.key_len = static_cast<int>(p.key_len);
  const int64_t needed = (args.rows + rows_at_once - 1) / rows_at_once;
  const int64_t places = int64_t{8} * processors;
  return launch_grid(norm_kernel<typename C::Element, C::head_dim>,
                     dim3(static_cast<unsigned>(needed < places ? needed : places)), norm_threads,
                     0, stream, true, args);
}

// dK, dV and what the step adds to dQ.
template <typename C>
int32_t launch_gradients(const BackwardParams& params, cudaStream_t stream) {
  const StepParams& p = params.step;
  const Scratch<C> scratch(p);
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
      status = launch_norm<C>(params, processors, stream);
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
  const bool causal = (p.flags & BARACUDA_STEP_CAUSAL) != 0;
  const int64_t section =
      C::ordered ? choose_ordered_section(p.batch * p.kv_heads, p.heads / p.kv_heads, p.query_len,
                                          p.head_dim, causal)
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
  args.causal = causal;
  args.shortest_first = draws_shortest_first(causal, args.group);
  args.gradients_f32 = params.kv_gradient_element == BARACUDA_F32;
  return launch_grid(step_kernel<C>, dim3(static_cast<unsigned>(grid * cluster)), C::threads,
                     C::shared_bytes, stream, true, args, cluster);
}

template <typename C>
constexpr BackwardFamily make_variant() {
  return BackwardFamily{
      [](const StepParams&) { return load_kernels<C>(); },
      [](const StepParams& p) { return Scratch<C>(p).bytes(); },
      [](const BackwardParams& params, void* stream) {
        return launch_prepare<C>(params, static_cast<cudaStream_t>(stream));
      },
      [](const BackwardParams& params, void* stream) {
        const int32_t status = launch_gradients<C>(params, static_cast<cudaStream_t>(stream));
        if (status != BARACUDA_OK || (params.step.flags & BARACUDA_STEP_LAST) == 0) return status;
        return launch_finish<C>(params, static_cast<cudaStream_t>(stream));
      },
      [](const BackwardParams& params, StepGrid* grid) {
        int processors = 0;
        const int32_t status = count_multiprocessors(&processors);
        *grid = {cluster_of<C> * resident_blocks<C>(params.step, processors), 1};
        return status;
      }};
}

}  // namespace baracuda::sm90::backward
