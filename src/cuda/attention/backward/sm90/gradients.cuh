// How dK and dV leave the sm90a backward kernel.
#pragma once

#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/schedule.cuh"
#include "common/dtype.cuh"

namespace baracuda::sm90::backward {

// The two keys of which a thread holds columns.
template <typename C>
class GradientRows {
  using Element = typename C::Element;

 public:
  __device__ __forceinline__ GradientRows(const Args& args, const Slot<C>& slot, int group)
      : batch_(slot.batch()),
        head_(slot.kv_head()),
        key_(slot.key0() + group * C::group_n + threadIdx.x % 128 / 32 * 16 +
             threadIdx.x % 32 / 4),
        key_len_(args.key_len),
        f32_(args.gradients_f32) {}

  __device__ __forceinline__ void store(void* to, const baracuda_strides& strides,
                                        const float (&d)[C::head_dim / 2], float factor) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (key_ + 8 * h >= key_len_) continue;
      const int64_t offset = batch_ * strides.batch + head_ * strides.head +
                             int64_t{key_ + 8 * h} * strides.seq + 2 * (threadIdx.x % 4);
      if (f32_) {
        float* const row = static_cast<float*>(to) + offset;
#pragma unroll
        for (int j = 0; j < C::head_dim / 8; ++j)
          *reinterpret_cast<float2*>(row + 8 * j) =
              make_float2(d[4 * j + 2 * h] * factor, d[4 * j + 2 * h + 1] * factor);
      } else {
        Element* const row = static_cast<Element*>(to) + offset;
#pragma unroll
        for (int j = 0; j < C::head_dim / 8; ++j)
          *reinterpret_cast<uint32_t*>(row + 8 * j) =
              Dtype<Element>::pack(d[4 * j + 2 * h] * factor, d[4 * j + 2 * h + 1] * factor);
      }
    }
  }

 private:
  const int64_t batch_, head_;
  const int key_, key_len_;
  const bool f32_;
};

}  // namespace baracuda::sm90::backward
