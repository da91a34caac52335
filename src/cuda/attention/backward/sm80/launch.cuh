// Host side of one instantiation of the sm80 backward kernel.
#pragma once

#include "attention/backward/row_kernels.cuh"
#include "attention/backward/sm80/kernel.cuh"
#include "attention/backward/sm80/variant.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_load.h"

namespace baracuda::sm80::backward {

struct SumsInOrder {
  static constexpr int share = 16, log2_most = 2, log2_most_masked = 1;
};

template <typename C>
using Rows = RowKernels<typename C::Element, C::head_dim, RowStatistics, C::turn_words,
                        std::conditional_t<C::ordered, SumsInOrder, OneSum>>;

// Sets *waits to true if the kernel's code for this device waits for previous kernels
// (dependent_launch.cuh). The code of the row kernels then does so, too.
template <typename C>
int32_t load_step_kernel(bool* waits) {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(step_kernel<C>), C::shared_bytes, ready,
                       waits);
}

// The number of K/V heads whose key tiles are interleaved, in a step that is not ordered. Under a
// mask: the number for which Q, dO and the sums of dQ fit in 32 of the 40 MB of an A100's L2. A
// group counts as one query head, because a block takes the heads of a group one after the other.
// Without a mask: 1.
inline int64_t choose_section(const StepParams& p) {
  constexpr int64_t l2_share = int64_t{32} << 20;
  if (!borders_may_vary(p)) return 1;
  const int64_t heads = p.batch * p.kv_heads, bytes = p.query_len * p.head_dim * 8;
  const int64_t fitting = bytes > 0 ? l2_share / bytes : heads;
  return fitting < 1 ? 1 : fitting < heads ? fitting : heads;
}

// Launches the step kernel: dK, dV and the additions to dQ.
template <typename C>
int32_t launch_gradients(const BackwardParams& params, bool waits, cudaStream_t stream) {
  const StepParams& p = params.step;
  const typename Rows<C>::Scratch scratch(p);
  const int64_t key_tiles = (p.key_len + C::block_n - 1) / C::block_n;
  const int64_t blocks = p.batch * p.kv_heads * key_tiles;
  if (blocks == 0) return BARACUDA_OK;
  if constexpr (C::shifts) {
    if (scratch.tiles > 0) {
      int processors = 0;
      int32_t status = count_multiprocessors(&processors);
      if (status == BARACUDA_OK)
        status = Rows<C>::launch_norm(params, processors, waits, stream);
      if (status != BARACUDA_OK) return status;
    }
  }
  Args args{};
  args.q = p.q;
  args.k = p.k;
  args.v = p.v;
  args.dy = params.dy;
  args.lse = reinterpret_cast<const float*>(scratch.statistics(p));
  args.delta = args.lse + scratch.tiles * Rows<C>::tile_rows;
  args.norms = scratch.norms(p);
  args.dq = scratch.dq(p);
  args.dk = params.dk;
  args.dv = params.dv;
  args.q_strides = p.q_strides;
  args.k_strides = p.k_strides;
  args.v_strides = p.v_strides;
  args.dy_strides = params.dy_strides;
  args.dk_strides = params.dk_strides;
  args.dv_strides = params.dv_strides;
  args.q_map = p.q_map;
  args.k_map = p.k_map;
  args.device_maps = p.device_maps;
  const int64_t stride = p.q_map.stride;
  if (p.device_maps == nullptr && stride > 0 && stride >> 31 == 0)
    args.q_stride = make_divisor(stride);
  args.heads = static_cast<int>(p.heads);
  args.kv_heads = static_cast<int>(p.kv_heads);
  args.group = static_cast<int>(p.heads / p.kv_heads);
  args.batch_kv_heads = static_cast<int>(p.batch * p.kv_heads);
  args.section = static_cast<int>(choose_section(p));
  args.query_len = static_cast<int>(p.query_len);
  args.key_len = static_cast<int>(p.key_len);
  args.row_tiles = static_cast<int>(scratch.query_tiles);
  args.key_tiles = static_cast<int>(key_tiles);
  args.no_row = static_cast<int>(scratch.query_tiles * Rows<C>::tile_rows);
  args.scale = static_cast<float>(p.scale);
  args.scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  args.borders_vary = borders_may_vary(p);
  args.gradients_f32 = params.kv_gradient_element == BARACUDA_F32;
  if constexpr (C::ordered) {
    const bool rising = draws_shortest_first(args.borders_vary, args.group);
    const int64_t fewest =
        rising ? 2 : args.borders_vary || args.group > 1 ? 4 : 8 * C::blocks_per_sm;
    const int64_t mixed = choose_ordered_section(p.batch * p.kv_heads, args.group, p.query_len,
                                                 p.head_dim, args.borders_vary, fewest);
    args.turns = scratch.turns(p);
    args.mixed = make_divisor(mixed);
    args.mixed_tiles = make_divisor(mixed * key_tiles);
    args.shortest_first = rising;
    args.log2_sums = scratch.log2_sums;
  }
  return launch_grid(step_kernel<C>, dim3(static_cast<unsigned>(blocks)), C::threads,
                     C::shared_bytes, stream, waits, args);
}

template <typename C>
constexpr BackwardFamily make_variant() {
  return BackwardFamily{
      [](const StepParams&) {
        bool waits = false;
        const int32_t status = load_step_kernel<C>(&waits);
        return status == BARACUDA_OK ? Rows<C>::load() : status;
      },
      [](const StepParams& p) { return typename Rows<C>::Scratch(p).bytes(); },
      [](const BackwardParams& params, void* stream) {
        bool waits = false;
        const int32_t status = load_step_kernel<C>(&waits);
        if (status != BARACUDA_OK) return status;
        return Rows<C>::launch_prepare(params, waits, static_cast<cudaStream_t>(stream));
      },
      [](const BackwardParams& params, void* stream) {
        bool waits = false;
        const int32_t status = load_step_kernel<C>(&waits);
        if (status != BARACUDA_OK) return status;
        return launch_gradients<C>(params, waits, static_cast<cudaStream_t>(stream));
      },
      nullptr,
      [](const BackwardParams& params, void* stream) {
        bool waits = false;
        const int32_t status = load_step_kernel<C>(&waits);
        if (status != BARACUDA_OK) return status;
        return Rows<C>::launch_finish(params, waits, static_cast<cudaStream_t>(stream));
      }};
}

template <typename Fast, typename Compact>
constexpr Variants make_variants() {
  static_assert(Compact::shared_bytes <= 99 * 1024, "some devices have less shared memory");
  return {make_variant<Fast>(), Fast::shared_bytes, make_variant<Compact>()};
}

}  // namespace baracuda::sm80::backward
