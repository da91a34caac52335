// State of a warp's rows in global memory, and the normalised output.
//
// State: o_acc [B*H*Q][HeadDim], then m [B*H*Q], then l [B*H*Q], all f32. The columns of a row are
// permuted so that the lane that owns four values of two adjacent mma tiles moves 16 bytes.
#pragma once

#include "attention/forward/step_args.cuh"
#include "attention/forward/store_lse.cuh"
#include "attention/row_result.h"
#include "common/dtype.cuh"
#include "common/exponential.cuh"
#include "common/mma_sync.cuh"
#include "common/swizzled_tile.cuh"

namespace baracuda::sm80 {

template <typename C>
class RowState {
  using Element = typename C::Element;
  using Layout = typename C::Layout;
  static constexpr int rows = 2 * C::row_blocks;

 public:
  // limits: how many keys each row of the block sees in this step.
  __device__ __forceinline__ RowState(const StepArgs& args, const BlockWork& work,
                                      const int32_t* limits, int warp_row0)
      : args_(args), work_(work), limits_(limits), warp_row0_(warp_row0),
        lane_(threadIdx.x % 32) {}

  // Merges the state that earlier steps left.
  template <typename Warp>
  __device__ __forceinline__ void merge_previous_state(Warp& w) const {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (!in_tensor(r)) continue;
      const float before = statistics()[state_row(r)];
      const float top = fmaxf(w.m[r], before);
      const float now = rescaling(w.m[r], top, args_.scale_log2);
      const float then = rescaling(before, top, args_.scale_log2);
      w.m[r] = top;
      w.l[r] *= now;
      // The lanes of a quad hold partial row sums until the end, so one lane gets the stored sum.
      if (lane_ % 4 == 0)
        w.l[r] = fmaf(statistics()[state_rows() + state_row(r)], then, w.l[r]);
#pragma unroll
      for (int j = 0; j < C::head_dim / 8; j += 2) {
        const float4 x = *accumulator(r, j);
        float(&a)[4] = w.o[r / 2][j];
        float(&b)[4] = w.o[r / 2][j + 1];
        a[r % 2 * 2] = fmaf(a[r % 2 * 2], now, x.x * then);
        a[r % 2 * 2 + 1] = fmaf(a[r % 2 * 2 + 1], now, x.y * then);
        b[r % 2 * 2] = fmaf(b[r % 2 * 2], now, x.z * then);
        b[r % 2 * 2 + 1] = fmaf(b[r % 2 * 2 + 1], now, x.w * then);
      }
    }
  }

  template <typename Warp>
  __device__ __forceinline__ void save(const Warp& w) const {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float l = quad_sum(w.l[r]);
      if (!in_tensor(r)) continue;
      if (lane_ % 4 == 0) {
        const bool undefined = is_undefined(w.m[r], l, r);
        statistics()[state_row(r)] = w.m[r];
        statistics()[state_rows() + state_row(r)] = stored_sum(l, undefined);
      }
#pragma unroll
      for (int j = 0; j < C::head_dim / 8; j += 2)
        *accumulator(r, j) =
            make_float4(w.o[r / 2][j][r % 2 * 2], w.o[r / 2][j][r % 2 * 2 + 1],
                        w.o[r / 2][j + 1][r % 2 * 2], w.o[r / 2][j + 1][r % 2 * 2 + 1]);
    }
  }

  // Writes y and lse. staging: the warp's own part of the Q tile, which is no longer read.
  template <typename Warp>
  __device__ __forceinline__ void finish(const Warp& w, char* staging) const {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float l = quad_sum(w.l[r]);
      const float empty = empty_row<float>(is_undefined(w.m[r], l, r));
      const float inverse = row_factor(l, empty);
      if (args_.lse != nullptr && lane_ % 4 == 0 && in_tensor(r))
        store_lse<Element>(args_, state_row(r), log_sum_exp(w.m[r], args_.scale, l, empty));
      const uint32_t row = row_in_warp(r);
#pragma unroll
      for (int j = 0; j < C::head_dim / 8; ++j)
        *reinterpret_cast<uint32_t*>(staging + Layout::offset(row, j) + lane_ % 4 * 4) =
            Dtype<Element>::pack(w.o[r / 2][j][r % 2 * 2] * inverse,
                                 w.o[r / 2][j][r % 2 * 2 + 1] * inverse);
    }
    __syncwarp();
    Element* y = static_cast<Element*>(args_.y) + work_.batch * args_.y_strides.batch +
                 work_.head * args_.y_strides.head;
    constexpr int rows_per_pass = 32 / Layout::span;
#pragma unroll
    for (int i = 0; i < C::warp_rows; i += rows_per_pass) {
      const int row = i + lane_ / Layout::span;
      const int64_t query = work_.row0 + warp_row0_ + row;
      if (query >= args_.query_len) continue;
#pragma unroll
      for (int j = lane_ % Layout::span; j < Layout::chunks; j += Layout::span)
        *reinterpret_cast<uint4*>(y + query * args_.y_strides.seq + j * 8) =
            *reinterpret_cast<const uint4*>(staging + Layout::offset(row, j));
    }
  }

 private:
  __device__ __forceinline__ int row_in_warp(int r) const {
    return r / 2 * 16 + r % 2 * 8 + lane_ / 4;
  }
  __device__ __forceinline__ bool in_tensor(int r) const {
    return work_.row0 + warp_row0_ + row_in_warp(r) < args_.query_len;
  }
  __device__ __forceinline__ bool is_undefined(float m, float l, int r) const {
    if (!is_empty_row(m, l)) return false;
    if (limits_[warp_row0_ + row_in_warp(r)] > 0) return true;
    return !args_.first && in_tensor(r) &&
           is_undefined_sum(statistics()[state_rows() + state_row(r)]);
  }
  __device__ __forceinline__ int64_t state_rows() const {
    return args_.batch_heads * args_.query_len;
  }
  __device__ __forceinline__ int64_t state_row(int r) const {
    return work_.state_row0 + warp_row0_ + row_in_warp(r);
  }
  __device__ __forceinline__ float4* accumulator(int r, int j) const {
    float* o = static_cast<float*>(args_.state) + state_row(r) * C::head_dim;
    return reinterpret_cast<float4*>(o + j * 8 + lane_ % 4 * 4);
  }
  __device__ __forceinline__ float* statistics() const {
    return static_cast<float*>(args_.state) + state_rows() * C::head_dim;
  }
  static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
  }

  const StepArgs& args_;
  const BlockWork& work_;
  const int32_t* const limits_;
  const int warp_row0_;
  const int lane_;
};

}  // namespace baracuda::sm80
