// Host side of one instantiation of the sm90a kernel.
#pragma once

#include "attention/forward/families.h"
#include "attention/forward/sm90/kernel.cuh"
#include "attention/forward/sm90/tensor_map.h"
#include "attention/forward/sm90/variant.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_load.h"

namespace baracuda::sm90 {

using Kernel = void (*)(HopperArgs);

template <typename C, bool First, bool Last>
constexpr Kernel kernel_if_served() {
  if constexpr (C::serves(First, Last)) {
    return step_kernel<C, First, Last>;
  } else {
    return nullptr;
  }
}

// The kernel for these flags (bit 0: FIRST, bit 1: LAST), or null if C does not serve such steps.
template <typename C>
Kernel kernel_of(uint32_t flags) {
  static constexpr Kernel kernels[4] = {
      kernel_if_served<C, false, false>(), kernel_if_served<C, true, false>(),
      kernel_if_served<C, false, true>(), kernel_if_served<C, true, true>()};
  static_assert(BARACUDA_STEP_FIRST == 1 && BARACUDA_STEP_LAST == 2, "flags index the table");
  return kernels[flags & 3];
}

template <typename C>
int32_t load_kernel(uint32_t flags) {
  static ReadyDevices ready[4];
  return ensure_loaded(reinterpret_cast<const void*>(kernel_of<C>(flags)), C::shared_bytes,
                       ready[flags & 3]);
}

template <typename C>
int32_t load_kernels() {
  int32_t status = load_tensor_map_encoder();
  for (uint32_t flags = 0; flags < 4 && status == BARACUDA_OK; ++flags)
    if (kernel_of<C>(flags) != nullptr) status = load_kernel<C>(flags);
  return status;
}

// The strides of inputs are checked before; those of outputs may be any.
inline bool tma_can_describe(const baracuda_strides& strides) {
  const int64_t limit = find_facts(BARACUDA_ATTENTION_SM90A)->max_stride_bytes / 2;
  const auto fits = [&](int64_t stride) { return stride >= 0 && stride < limit; };
  return fits(strides.batch) && fits(strides.head) && fits(strides.seq);
}

constexpr uint32_t whole_call = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
// True for a step that is a call of its own.
inline bool is_whole(const StepParams& p) { return (p.flags & whole_call) == whole_call; }

template <typename C>
int32_t encode_maps(const StepParams& p, HopperArgs& args) {
  const bool is_bf16 = p.element == BARACUDA_BF16;
  int32_t status = BARACUDA_OK;
  if (p.key_len > 0) {  // without keys nothing is copied, and the operands may be null
    status = encode_tensor_map(&args.q, "q", is_bf16, p.q, p.q_strides, p.batch, p.heads,
                               p.query_len, p.head_dim, C::group_m);
    if (status == BARACUDA_OK)
      status = encode_tensor_map(&args.k, "k", is_bf16, p.k, p.k_strides, p.batch, p.kv_heads,
                                 p.key_len, p.head_dim, C::copied_n);
    if (status == BARACUDA_OK)
      status = encode_tensor_map(&args.v, "v", is_bf16, p.v, p.v_strides, p.batch, p.kv_heads,
                                 p.key_len, p.head_dim, C::copied_n);
  }
  args.maps_y =
      C::stages_output && (p.flags & BARACUDA_STEP_LAST) != 0 && tma_can_describe(p.y_strides);
  if (status == BARACUDA_OK && args.maps_y)
    status = encode_tensor_map(&args.y, "y", is_bf16, p.y, p.y_strides, p.batch, p.heads,
                               p.query_len, p.head_dim, C::y_rows);
  return status;
}

// True if a step may start before the previous kernel has ended. Only a step that continues a state
// may. If a round of a ring started while two steps overlap, the first blocks of the later step
// could take the multiprocessors that the round needs. So a step that leaves multiprocessors free
// for an exchange (sm_margin) may overlap the previous kernel only if it has the flag FOLLOWS. Only
// the ring sets both, and in a ring no round starts while two steps overlap. Step s starts only
// when round s - 1 has brought its chunk, so round s - 1 has started before. Round s starts only
// when step s - 1 has ended.
//
// Two steps of a ring overlap if nothing is between them on the stream (ranks that share a stream),
// or only a gate (a kernel by which the stream waits for a chunk that arrives by peer,
// runtime/gate.h). If the stream waits for an event between them, as with NCCL, the later step
// cannot start before that event.
inline bool overlaps_previous(const StepParams& p) {
  return (p.flags & BARACUDA_STEP_FIRST) == 0 &&
         (p.sm_margin == 0 || (p.flags & BARACUDA_STEP_FOLLOWS) != 0);
}

template <typename C>
StepArgs arguments(const StepParams& p, const StepMask& mask) {
  StepArgs args = make_step_args(p, C::cluster_m, sizeof(typename C::Element));
  const bool finishes_masked_rows = mask.first_row > 0 && (p.flags & BARACUDA_STEP_LAST) != 0;
  if (!finishes_masked_rows || C::finishes_masked_rows)
    drop_mask(mask, C::cluster_m, masked_row_unit, args);
  return args;
}

// The number of clusters, or of blocks if a cluster is one block. Blocks stay resident, with one on
// each multiprocessor.
template <typename C>
int64_t resident_clusters(const StepParams& p, const StepArgs& args, int processors) {
  const int64_t left = (processors - p.sm_margin) / C::cluster, places = left > 0 ? left : 1;
  return places < args.blocks ? places : args.blocks;
}

inline void set_tile_order(HopperArgs& args, int64_t clusters) {
  const StepArgs& step = args.step;
  const TileOrder order =
      make_tile_order(step.batch_heads, step.query_tiles, step.section, clusters);
  args.order = order;
  args.backwards = order.backwards;
  args.query_tiles = order.tiles;
  args.section = order.section;
}

template <typename C>
int32_t find_grid(const StepParams& p, const StepMask& mask, StepGrid* grid) {
  int processors = 0;
  const int32_t status = count_multiprocessors(&processors);
  if (status == BARACUDA_OK) {
    *grid = {C::cluster * resident_clusters<C>(p, arguments<C>(p, mask), processors), 1};
  }
  return status;
}

template <typename C>
int32_t launch_kernel(const StepParams& p, const StepMask& mask, cudaStream_t stream) {
  int32_t status = load_kernel<C>(p.flags);
  HopperArgs args{};
  if (status == BARACUDA_OK) status = encode_maps<C>(p, args);
  int processors = 0;
  if (status == BARACUDA_OK) status = count_multiprocessors(&processors);
  if (status != BARACUDA_OK) return status;
  args.step = arguments<C>(p, mask);
  if (args.step.first_row > 0)
    args.masked_row_units = make_divisor(args.step.first_row / masked_row_unit);
  const int64_t clusters = resident_clusters<C>(p, args.step, processors);
  args.step.section = choose_section(args.step, sizeof(typename C::Element), clusters);
  args.leaves_processors = p.sm_margin > 0;
  set_tile_order(args, clusters);
  args.heads = make_divisor(args.step.heads);
  args.group = make_divisor(args.step.group);
  const int64_t stride = p.k_map.stride;
  if (p.device_maps == nullptr && stride > 0 && stride >> 31 == 0)
    args.key_stride = make_divisor(stride);
  return launch_grid(kernel_of<C>(p.flags), dim3(static_cast<unsigned>(C::cluster * clusters)),
                     C::threads, C::shared_bytes, stream, overlaps_previous(p), args, C::cluster);
}

template <typename C>
constexpr Variant make_variant() {
  return Variant{load_kernels<C>, [](const StepParams& p, cudaStream_t stream) {
                   return launch_kernel<C>(p, step_mask(p), stream);
                 },
                 [](const StepParams& p, StepGrid* grid) {
                   return find_grid<C>(p, step_mask(p), grid);
                 }};
}

}  // namespace baracuda::sm90
