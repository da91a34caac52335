// The state of a warpgroup's rows in global memory, which a step of a ring leaves for the next
// step, and the normalised output.
//
// The state is o_acc, then m [B*H*Q], then l [B*H*Q], all f32. o_acc is in fragment order. A group
// of eight rows by 16 columns (two adjacent accumulator tiles of eight columns) is stored as 32
// float4s, one of each lane: the lane's two columns of the first tile, then those of the second. So
// a warp moves 512 contiguous bytes. If the last group of a head has fewer than eight rows, it is
// packed without gaps, so the state is exactly B*H*Q*(D+2) floats.
//
// The weight of a score, an element of P, is exp(scale * (score - m)). l is the sum of the weights,
// and o_acc the sum of the weights times V. m need not be the largest score. The first step in
// which a row sees a key sets m to the largest score of that step. Later steps keep this m, even if
// they have larger scores, so that they can add to o_acc in memory. There are two exceptions. A
// warp raises m of its rows if weights of one of them would exceed 2^16
// (merge_under_previous_max()). And the last step uses the larger m, because it stores neither m
// nor o_acc.
#pragma once

#include <math_constants.h>

#include "attention/forward/sm90/barriers.cuh"
#include "attention/forward/sm90/output_stage.cuh"
#include "attention/forward/sm90/work_tiles.cuh"
#include "attention/forward/sm90/softmax.cuh"
#include "attention/forward/store_lse.cuh"
#include "attention/row_result.h"
#include "common/dtype.cuh"
#include "common/global_access.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90 {

// Lane i of a quad gets word i of all four lanes.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
  if (odd) {
    w[0] = a;
    w[2] = b;
  } else {
    w[1] = a;
    w[3] = b;
  }
  const uint32_t c = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
  if (high) {
    w[0] = c;
    w[1] = d;
  } else {
    w[2] = c;
    w[3] = d;
  }
}

template <typename C>
class StateRows {
  using Element = typename C::Element;
  static constexpr int head_dim = C::head_dim;

 public:
  __device__ __forceinline__ StateRows(const StepArgs& args, const WorkTile<C>& tile)
      : args_(args),
        tile_(tile),
        batch_head_(tile.batch_head()),
        warp_row_(threadIdx.x % 128 / 32 * 16),
        row0_(tile.row0() + warp_row_),
        lane_(threadIdx.x % 32),
        maxima_(static_cast<float*>(args.state) + state_rows() * head_dim + state_row(0)) {}

  // A lane's part of o_acc, in the order of the state.
  using Fragments = float4[2][head_dim / 16];

  __device__ __forceinline__ void load(Fragments& x) const {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < head_dim / 16; ++j) x[h][j] = load_fragment(h, j);
  }
  // Sets o to o * factors.now + x * factors.previous. x is in registers, or is loaded from the
  // state.
  static __device__ __forceinline__ void add(float (&o)[head_dim / 2], const Factors& factors,
                                             const Fragments& x) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < head_dim / 16; ++j) add_fragment(o, factors, h, j, x[h][j]);
  }
  __device__ __forceinline__ void add(float (&o)[head_dim / 2], const Factors& factors) const {
    for_each_fragment([&](float4* fragment, int h, int j) {
      add_fragment(o, factors, h, j, load_early(fragment));
    });
  }
  __device__ __forceinline__ void load_statistics(RowStatistics& rows) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool inside = in_tensor(h);
      rows.m[h] = inside ? load_early(maxima_ + 8 * h) : -CUDART_INF_F;
      // The lanes of a quad hold partial row sums until the end, so one lane gets the stored sum.
      rows.l[h] = inside && lane_ % 4 == 0 ? load_early(sums() + 8 * h) : 0.0f;
    }
  }

  __device__ __forceinline__ void save_statistics(const RowStatistics& rows) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float l = quad_sum(rows.l[h]);
      if (!in_tensor(h) || lane_ % 4 != 0) continue;
      const bool undefined = is_undefined(rows.m[h], l, h);
      maxima_[8 * h] = rows.m[h];
      sums()[8 * h] = stored_sum(l, undefined);
    }
  }

  // save() overwrites o_acc in the state with o. save_sum() adds o to it.
  __device__ __forceinline__ void save(const float (&o)[head_dim / 2]) const {
    for_each_fragment([&](float4* fragment, int h, int j) { *fragment = get(o, h, j); });
  }
  __device__ __forceinline__ void save_sum(const float (&o)[head_dim / 2]) const {
    const uint64_t policy = l2_evict_last();
    for_each_fragment(
        [&](float4* fragment, int h, int j) { add_in_memory(fragment, get(o, h, j), policy); });
  }

  // Writes y and lse.
  __device__ __forceinline__ void finish(const float (&o)[head_dim / 2], const RowStatistics& rows,
                                         const OutputStage<C>& output) const {
    const float l[2] = {quad_sum(rows.l[0]), quad_sum(rows.l[1])};
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float empty = empty_row<float>(is_undefined(rows.m[h], l[h], h));
      factor[h] = row_factor(l[h], empty);
      if (args_.lse != nullptr && lane_ % 4 == 0 && in_tensor(h))
        store_lse<Element>(args_, state_row(h), log_sum_exp(rows.m[h], args_.scale, l[h], empty));
    }
    if constexpr (C::stages_output) {
      output.store(o, factor, tile_);
    } else {
      store_output(o, factor);
    }
  }

 private:
  // The lanes of a quad transpose their words, so that each stores 16 bytes of a row.
  __device__ __forceinline__ void store_output(const float (&o)[head_dim / 2],
                                               const float (&factor)[2]) const {
    Element* y = static_cast<Element*>(args_.y) + tile_.batch() * args_.y_strides.batch +
                 tile_.head() * args_.y_strides.head + lane_ % 4 * 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool inside = in_tensor(h);
      Element* y_row = y + row(h) * args_.y_strides.seq;
#pragma unroll
      for (int j = 0; j < head_dim / 8; j += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          words[i] = Dtype<Element>::pack(o[4 * (j + i) + 2 * h] * factor[h],
                                          o[4 * (j + i) + 2 * h + 1] * factor[h]);
        transpose_quad(words, lane_);
        if (inside)
          store_four(y_row + j * 8, words);
      }
    }
  }

  template <typename F>
  __device__ __forceinline__ void for_each_fragment(F f) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!in_tensor(h)) continue;
      float4* fragment = accumulator(h);
      const int stride = group_stride(h);
#pragma unroll
      for (int j = 0; j < head_dim / 16; ++j) {
        f(fragment, h, j);
        fragment += stride;
      }
    }
  }
  // A lane's float4 of the j-th pair of accumulator tiles.
  static __device__ __forceinline__ float4 get(const float (&o)[head_dim / 2], int h, int j) {
    return make_float4(o[8 * j + 2 * h], o[8 * j + 2 * h + 1], o[8 * j + 4 + 2 * h],
                       o[8 * j + 4 + 2 * h + 1]);
  }
  static __device__ __forceinline__ void put(float (&o)[head_dim / 2], int h, int j, float4 x) {
    o[8 * j + 2 * h] = x.x;
    o[8 * j + 2 * h + 1] = x.y;
    o[8 * j + 4 + 2 * h] = x.z;
    o[8 * j + 4 + 2 * h + 1] = x.w;
  }
  static __device__ __forceinline__ void add_fragment(float (&o)[head_dim / 2],
                                                      const Factors& factors, int h, int j,
                                                      float4 x) {
    const float4 y = get(o, h, j);
    const float now = factors.now[h], previous = factors.previous[h];
    put(o, h, j,
        make_float4(fmaf(y.x, now, x.x * previous), fmaf(y.y, now, x.y * previous),
                    fmaf(y.z, now, x.z * previous), fmaf(y.w, now, x.w * previous)));
  }
  __device__ __forceinline__ float4 load_fragment(int h, int j) const {
    return in_tensor(h) ? load_early(accumulator(h) + j * group_stride(h))
                        : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __device__ __forceinline__ int64_t row(int h) const { return row0_ + 8 * h + lane_ / 4; }
  __device__ __forceinline__ bool in_tensor(int h) const { return row(h) < args_.query_len; }
  __device__ __forceinline__ bool is_undefined(float m, float l, int h) const {
    if (!is_empty_row(m, l)) return false;
    if (tile_.limit(warp_row_ + 8 * h + lane_ / 4) > 0) return true;
    return !args_.first && in_tensor(h) && is_undefined_sum(__ldcg(sums() + 8 * h));
  }
  __device__ __forceinline__ int64_t state_rows() const {
    return args_.batch_heads * args_.query_len;
  }
  __device__ __forceinline__ int64_t state_row(int h) const {
    return batch_head_ * args_.query_len + row(h);
  }
  // The distance, in float4s, from one pair of accumulator tiles to the next: four for each row of
  // the group, which has eight rows or, at the end of a head, fewer.
  __device__ __forceinline__ int group_stride(int h) const {
    const int64_t left = args_.query_len - (row0_ + 8 * h);
    return 4 * (left < 8 ? static_cast<int>(left) : 8);
  }
  __device__ __forceinline__ float4* accumulator(int h) const {
    float* eight_rows = static_cast<float*>(args_.state) +
                        (batch_head_ * args_.query_len + row0_ + 8 * h) * head_dim;
    return reinterpret_cast<float4*>(eight_rows) + lane_;
  }
  __device__ __forceinline__ float* sums() const { return maxima_ + state_rows(); }
  static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
  }

  const StepArgs& args_;
  const WorkTile<C>& tile_;
  const int64_t batch_head_;
  const int warp_row_;  // the warp's first row, counted in the rows of its warpgroup
  const int64_t row0_;  // the same row, counted in the head
  const int lane_;
  float* const maxima_;  // m of the lane's first row; m of its second row is 8 floats later
};

}  // namespace baracuda::sm90
