// The stores of dK and dV in the backward kernels on tensor cores.
#pragma once

#include "baracuda/element.h"
#include "common/dtype.cuh"

namespace baracuda {

// A thread's two keys among the 16 of its warp. The thread holds some columns of their gradients.
template <typename Element, int HeadDim>
class GradientRows {
 public:
  // key0: the warp's first key. f32: dK and dV are stored in float32, else in the operands' type.
  __device__ __forceinline__ GradientRows(int64_t batch, int64_t head, int key0, int key_len,
                                          bool f32)
      : batch_(batch),
        head_(head),
        key_(key0 + threadIdx.x % 32 / 4),
        key_len_(key_len),
        f32_(f32) {}

  // Stores 16 bytes at a time. For that the lanes of a quad exchange columns.
  __device__ __forceinline__ void store(void* to, const baracuda_strides& strides,
                                        const float (&d)[HeadDim / 2], float factor) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool is_key = key_ + 8 * h < key_len_;
      const int64_t offset = batch_ * strides.batch + head_ * strides.head +
                             int64_t{key_ + 8 * h} * strides.seq;
      if (f32_) {
        store_f32(static_cast<float*>(to) + offset, d, h, factor, is_key);
      } else {
        store_rounded(static_cast<Element*>(to) + offset, d, h, factor, is_key);
      }
    }
  }

 private:
  static constexpr uint32_t all = 0xffffffffu;

  // Stores two blocks of eight columns at a time. Even lanes take the first block, odd lanes the
  // second.
  static __device__ __forceinline__ void store_f32(float* row, const float (&d)[HeadDim / 2],
                                                   int h, float factor, bool is_key) {
    const bool odd = threadIdx.x % 2 != 0;
    const int column = threadIdx.x % 4 / 2 * 4 + (odd ? 8 : 0);
#pragma unroll
    for (int j = 0; j < HeadDim / 8; j += 2) {
      const float2 first{d[4 * j + 2 * h] * factor, d[4 * j + 2 * h + 1] * factor};
      const float2 second{d[4 * j + 4 + 2 * h] * factor, d[4 * j + 4 + 2 * h + 1] * factor};
      const float x = __shfl_xor_sync(all, odd ? first.x : second.x, 1);
      const float y = __shfl_xor_sync(all, odd ? first.y : second.y, 1);
      if (is_key)
        *reinterpret_cast<float4*>(row + 8 * j + column) =
            odd ? make_float4(x, y, second.x, second.y) : make_float4(first.x, first.y, x, y);
    }
  }

  // Stores four blocks of eight columns at a time, with one block for each lane of a quad: a 4 by 4
  // transposition in two steps.
  static __device__ __forceinline__ void store_rounded(Element* row,
                                                       const float (&d)[HeadDim / 2], int h,
                                                       float factor, bool is_key) {
    const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x % 4 >= 2;
#pragma unroll
    for (int j = 0; j < HeadDim / 8; j += 4) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = Dtype<Element>::pack(d[4 * (j + i) + 2 * h] * factor,
                                    d[4 * (j + i) + 2 * h + 1] * factor);
      uint32_t pairs[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t got = __shfl_xor_sync(all, odd ? x[2 * i] : x[2 * i + 1], 1);
        pairs[i][0] = odd ? got : x[2 * i];
        pairs[i][1] = odd ? x[2 * i + 1] : got;
      }
      const uint32_t got0 = __shfl_xor_sync(all, upper ? pairs[0][0] : pairs[1][0], 2);
      const uint32_t got1 = __shfl_xor_sync(all, upper ? pairs[0][1] : pairs[1][1], 2);
      if (is_key)
        *reinterpret_cast<uint4*>(row + 8 * (j + threadIdx.x % 4)) =
            upper ? make_uint4(got0, got1, pairs[1][0], pairs[1][1])
                  : make_uint4(pairs[0][0], pairs[0][1], got0, got1);
    }
  }

  const int64_t batch_, head_;
  const int key_, key_len_;
  const bool f32_;
};

}  // namespace baracuda
