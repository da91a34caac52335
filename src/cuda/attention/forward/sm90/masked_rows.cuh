// Fully masked rows: the first `first_row` rows of every head, if the host knows that they see none
// of a step's keys. (In the last step of a causal zigzag ring these are half of the rows of every
// rank but the last.) They need no products. But the first step must write their state, and the
// last step their output. The warps that copy Q do this after their last copy, while the products
// of the last query tiles run.
#pragma once

#include <math_constants.h>

#include "attention/forward/sm90/work_tiles.cuh"
#include "attention/forward/sm90/state.cuh"
#include "attention/forward/store_lse.cuh"
#include "attention/row_result.h"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"
#include "common/global_access.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
class FullyMaskedRows {
  using Element = typename C::Element;
  static constexpr int rows_at_once = 8;  // the state has o_acc in groups of eight rows (state.cuh)
  static constexpr int columns_at_once = C::head_dim < 128 ? C::head_dim : 128;
  static_assert(masked_row_unit % rows_at_once == 0, "a unit must be whole groups of rows");

 public:
  __device__ __forceinline__ explicit FullyMaskedRows(const HopperArgs& args)
      : all_(args), args_(args.step), lane_(threadIdx.x % 32) {}

  // Processes this warp's share of the rows; `warps` warps share them.
  __device__ __forceinline__ void run(int warp, int warps) const {
    if constexpr (Last ? C::finishes_masked_rows : First) {
      const int units = static_cast<int>(args_.batch_heads * all_.masked_row_units.divisor);
      if (warp >= units) return;
      if constexpr (!First) await_previous_grids();
#pragma unroll 1
      for (int unit = warp; unit < units; unit += warps) {
        const int batch_head = all_.masked_row_units.quotient(unit);
        const int row0 = all_.masked_row_units.remainder(unit) * masked_row_unit;
#pragma unroll 1
        for (int i = 0; i < masked_row_unit; i += rows_at_once) rows(batch_head, row0 + i);
      }
    }
  }

 private:
  __device__ __forceinline__ void rows(int batch_head, int row0) const {
    const int64_t state_rows = args_.batch_heads * args_.query_len;
    const int64_t state_row0 = batch_head * args_.query_len + row0, row = state_row0 + lane_ / 4;
    float* const state = static_cast<float*>(args_.state);
    float* const maxima = state + state_rows * C::head_dim;
    float4* const o_acc = reinterpret_cast<float4*>(state + state_row0 * C::head_dim) + lane_;
    if constexpr (!Last) {
#pragma unroll
      for (int j = 0; j < C::head_dim / 16; ++j) o_acc[32 * j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (lane_ % 4 == 0) {
        maxima[row] = -CUDART_INF_F;
        maxima[state_rows + row] = 0.0f;
      }
    } else {
      float m = -CUDART_INF_F, l = 0.0f;
      if constexpr (!First) {
        m = load_early(maxima + row);
        l = load_early(maxima + state_rows + row);
      }
      const float empty =
          m == -CUDART_INF_F && is_undefined_sum(l) ? empty_row<float>(true) : 0.0f;
      if (args_.lse != nullptr && lane_ % 4 == 0)
        store_lse<Element>(args_, row, log_sum_exp(m, args_.scale, l, empty));
      const float inverse = row_factor(l, empty);
      const int batch = all_.heads.quotient(batch_head), head = all_.heads.remainder(batch_head);
      Element* const y = static_cast<Element*>(args_.y) + batch * args_.y_strides.batch +
                         head * args_.y_strides.head + (row0 + lane_ / 4) * args_.y_strides.seq +
                         lane_ % 4 * 8;
#pragma unroll
      for (int part = 0; part < C::head_dim; part += columns_at_once) {
        float4 x[columns_at_once / 16] = {};
        if constexpr (!First) {
#pragma unroll
          for (int j = 0; j < columns_at_once / 16; ++j)
            x[j] = load_early(o_acc + 2 * part + 32 * j);
        }
#pragma unroll
        for (int j = 0; j < columns_at_once / 32; ++j) {
          uint32_t words[4];
          pack(words, x[2 * j], x[2 * j + 1], inverse);
          transpose_quad(words, lane_);
          *reinterpret_cast<uint4*>(y + part + 32 * j) =
              make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }

  static __device__ __forceinline__ void pack(uint32_t (&words)[4], float4 a, float4 b,
                                              float factor) {
    words[0] = Dtype<Element>::pack(a.x * factor, a.y * factor);
    words[1] = Dtype<Element>::pack(a.z * factor, a.w * factor);
    words[2] = Dtype<Element>::pack(b.x * factor, b.y * factor);
    words[3] = Dtype<Element>::pack(b.z * factor, b.w * factor);
  }

  const HopperArgs& all_;
  const StepArgs& args_;
  const int lane_;
};

}  // namespace baracuda::sm90
