// Host side of one instantiation of the simt backward.
#pragma once

#include "attention/backward/simt/kernels.cuh"
#include "attention/backward/simt/variant.h"
#include "common/kernel_load.h"

namespace baracuda::simt {

template <typename Compute>
int32_t load_prepare() {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(prepare_kernel<Compute>), 0, ready);
}
template <typename C>
int32_t load_keys() {
  static_assert(C::shared_bytes <= 99 << 10, "must fit an sm_86 block");
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(keys_kernel<C>), C::shared_bytes, ready);
}
template <typename C>
int32_t load_rows_kernel() {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(rows_kernel<C>), C::shared_bytes, ready);
}

template <typename C>
int32_t load_backward() {
  int32_t status = load_prepare<typename C::Compute>();
  if (status == BARACUDA_OK) status = load_keys<C>();
  return status == BARACUDA_OK ? load_rows_kernel<C>() : status;
}

template <typename Compute>
int32_t launch_prepare(const BackwardParams& params, cudaStream_t stream) {
  const int32_t status = load_prepare<Compute>();
  if (status != BARACUDA_OK) return status;
  const BackwardArgs args = make_args(params);
  constexpr int64_t rows = prepare_threads / 32;
  const int64_t blocks = (args.batch_heads * args.query_len + rows - 1) / rows;
  prepare_kernel<Compute><<<grid_of(blocks), prepare_threads, 0, stream>>>(args);
  return check_cuda(cudaGetLastError(), "simt backward prepare");
}

template <typename C>
int32_t launch_backward(const BackwardParams& params, cudaStream_t stream) {
  int32_t status = load_backward<C>();
  if (status != BARACUDA_OK) return status;
  const BackwardArgs args = make_args(params);
  if (args.key_len > 0) {
    const int64_t tiles = (args.key_len + C::side - 1) / C::side;
    keys_kernel<C><<<grid_of(tiles * args.batch_kv_heads), C::threads, C::shared_bytes, stream>>>(
        args);
    status = check_cuda(cudaGetLastError(), "simt backward step, keys");
    if (status != BARACUDA_OK) return status;
  }
  if (is_empty(params.step)) return BARACUDA_OK;
  const int64_t tiles = (args.query_len + C::side - 1) / C::side;
  rows_kernel<C><<<grid_of(tiles * args.batch_heads), C::threads, C::shared_bytes, stream>>>(args);
  return check_cuda(cudaGetLastError(), "simt backward step, rows");
}

template <typename C>
constexpr BackwardVariant make_backward() {
  return {load_backward<C>, launch_prepare<typename C::Compute>, launch_backward<C>};
}

template <typename Compute, int Micro>
BackwardVariant backward_of(int64_t head_dim) {
  if (head_dim <= 128) return make_backward<GradientConfig<Compute, 2, Micro>>();
  return make_backward<GradientConfig<Compute, 4, Micro>>();
}

}  // namespace baracuda::simt
