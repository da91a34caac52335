// Host side of one instantiation of the simt kernel.
#pragma once

#include "attention/forward/simt/kernel.cuh"
#include "attention/forward/simt/variant.h"
#include "common/kernel_load.h"

namespace baracuda::simt {

template <typename C>
int32_t load_kernel() {
  static_assert(C::shared_bytes <= 99 << 10, "must fit an sm_86 block");
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(step_kernel<C>), C::shared_bytes, ready);
}

template <typename C>
StepArgs arguments(const StepParams& params) {
  StepArgs args = make_step_args(params, C::block_m, sizeof(typename C::Element));
  drop_mask_of_tiles(params, C::block_m, args);
  return args;
}

template <typename C>
int32_t launch_kernel(const StepParams& params, cudaStream_t stream) {
  int32_t status = load_kernel<C>();
  if (status != BARACUDA_OK) return status;
  const StepArgs args = arguments<C>(params);
  step_kernel<C><<<step_grid(args), C::threads, C::shared_bytes, stream>>>(args);
  return check_cuda(cudaGetLastError(), "simt attention step");
}

template <typename C>
int32_t find_grid(const StepParams& params, StepGrid* grid) {
  *grid = {arguments<C>(params).blocks, C::blocks_per_sm};
  return BARACUDA_OK;
}

template <typename C>
constexpr Variant make_variant() {
  return Variant{load_kernel<C>, launch_kernel<C>, find_grid<C>};
}

// For elements whose arithmetic is f32.
template <typename Element>
Variant variant_f32_math(int64_t head_dim) {
  if (head_dim <= 64) return make_variant<Config<Element, 1, 8, 4, 3>>();
  if (head_dim <= 128) return make_variant<Config<Element, 2, 8, 4, 2>>();
  return make_variant<Config<Element, 4, 4, 4, 2>>();
}

}  // namespace baracuda::simt
