// S and dP of 64 keys and a query tile, computed transposed, and P and dS as operands.
#pragma once

#include <stdint.h>

#include "common/dtype.cuh"
#include "common/exponential.cuh"
#include "common/shared_access.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90::backward {

// Issues S (or dP) of 64 keys and 64 queries, less lse / scale (or delta) of each row: `ones` is
// one in the columns of the statistics that hold it.
template <typename C, int Scores>
__device__ __forceinline__ void issue_scores(float (&d)[Scores], uint32_t keys, uint32_t query_tile,
                                             const uint32_t (&ones)[4], uint32_t statistics) {
  const uint64_t a = wgmma_descriptor(keys, 0);
  const uint64_t b = wgmma_descriptor(query_tile, 0);
#pragma unroll
  for (int i = 0; i < C::head_dim / 16; ++i) {
    const int block = i / 4, inside = i % 4 * 32;
    wgmma<typename C::Element>(d, a + ((block * C::kv_block_bytes + inside) >> 4),
                               b + ((block * C::q_block_bytes + inside) >> 4), i > 0);
  }
  wgmma_bf16_k_major(d, ones, wgmma_descriptor_k8(statistics));
  wgmma_commit();
}

// The same, with the keys in registers.
template <typename C, int Scores, int Steps>
__device__ __forceinline__ void issue_scores(float (&d)[Scores], const uint32_t (&keys)[Steps][4],
                                             uint32_t query_tile, const uint32_t (&ones)[4],
                                             uint32_t statistics) {
  const uint64_t b = wgmma_descriptor(query_tile, 0);
#pragma unroll
  for (int i = 0; i < Steps; ++i)
    wgmma_k_major<typename C::Element>(d, keys[i], b + (i * 32 >> 4), i > 0);
  wgmma_bf16_k_major(d, ones, wgmma_descriptor_k8(statistics));
  wgmma_commit();
}

// A fragments of a warp's 16 of 64 keys.
template <int Steps>
__device__ __forceinline__ void load_keys(uint32_t (&a)[Steps][4], uint32_t keys) {
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x % 128 / 32 * 16 + (lane / 8 & 1) * 8 + lane % 8;
  const uint32_t at = keys + row * 128 + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
  for (int i = 0; i < Steps; ++i) shared_load_matrices(at ^ 32 * i, a[i]);
}

// Adds the products with the rows of a query tile to dV or dK. At most 128 columns at a time,
// because ptxas requires an instruction's registers to be among those that a kernel of 512 threads
// starts with.
template <typename C, int Columns, int Steps>
__device__ __forceinline__ void issue_update(float (&d)[Columns], const uint32_t (&a)[Steps][4],
                                             uint32_t query_tile) {
  constexpr int part = Columns < 64 ? Columns : 64;
#pragma unroll
  for (int at = 0; at < Columns; at += part) {
    const uint64_t b = wgmma_descriptor(query_tile + at / 32 * C::q_block_bytes, C::q_block_bytes);
#pragma unroll
    for (int i = 0; i < Steps; ++i)
      wgmma<typename C::Element>(reinterpret_cast<float(&)[part]>(d[at]), a[i],
                                 b + (i * 2048 >> 4));
  }
  wgmma_commit();
}

// Computes P * 2^shift (shift.cuh) from s = S - lse / scale.
template <typename C, int Scores>
__device__ __forceinline__ void compute_p(float (&p)[Scores], const float (&s)[Scores],
                                          float scale_log2, float shift) {
#pragma unroll
  for (int i = 0; i < Scores; ++i)
    p[i] = exp2_approx(C::shifts ? fmaf(s[i], scale_log2, shift) : s[i] * scale_log2);
}

template <typename C, int Scores>
__device__ __forceinline__ void compute_p(float (&s)[Scores], float scale_log2, float shift) {
  compute_p<C>(s, s, scale_log2, shift);
}

// The factor that removes the shift.
template <typename C>
__device__ __forceinline__ float unshift_of(float shift) {
  if constexpr (!C::shifts) return 1.0f;
  // Volatile, so that it is recomputed where it is needed instead of kept in a register.
  float factor;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(factor) : "f"(-shift));
  return factor;
}

// Zeroes masked elements. left: the number of rows of the query tile before the first row that sees
// each of the thread's two keys. Uses a select, because dP or delta may be NaN where P is zero.
template <int Scores>
__device__ __forceinline__ void apply_mask(float (&x)[Scores], const int (&left)[2]) {
#pragma unroll
  for (int i = 0; i < Scores; ++i)
    if (i / 4 * 8 + i % 2 < left[i / 2 % 2]) x[i] = 0.0f;
}

// The A fragment of the k-th 16 columns.
template <typename Element, int Scores>
__device__ __forceinline__ void pack(const float (&x)[Scores], int k, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    a[i] = Dtype<Element>::pack(x[8 * k + 2 * i], x[8 * k + 2 * i + 1]);
}

}  // namespace baracuda::sm90::backward
