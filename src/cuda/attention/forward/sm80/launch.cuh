// Host side of one instantiation of the sm80 kernel.
#pragma once

#include "attention/forward/sm80/kernel.cuh"
#include "attention/forward/sm80/variant.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_load.h"

namespace baracuda::sm80 {

template <typename C>
int32_t load_kernel(bool* waits) {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(step_kernel<C>), C::shared_bytes, ready,
                       waits);
}
template <typename C>
int32_t load_kernel() {
  return load_kernel<C>(nullptr);
}

template <typename C>
StepArgs arguments(const StepParams& params) {
  StepArgs args = make_step_args(params, C::block_m, sizeof(typename C::Element));
  drop_mask_of_tiles(params, C::block_m, args);
  return args;
}

template <typename C>
int32_t launch_kernel(const StepParams& params, cudaStream_t stream) {
  bool waits = false;
  int32_t status = load_kernel<C>(&waits);
  if (status != BARACUDA_OK) return status;
  const StepArgs args = arguments<C>(params);
  // Overlaps the previous step only if the blocks need not wait for it when they start. Blocks that
  // wait at their start are placed unevenly, and steps that do not fill the device took a third
  // longer.
  return launch_grid(step_kernel<C>, step_grid(args), C::threads, C::shared_bytes, stream,
                     waits && args.follows && !args.first, args);
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

}  // namespace baracuda::sm80
