// S, P, dP and dS of a query tile, and their products with the rows of Q and dO.
#pragma once

#include "attention/backward/sm80/block.cuh"
#include "common/dtype.cuh"
#include "common/exponential.cuh"
#include "common/mbarrier.cuh"
#include "common/mma_sync.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm80::backward {

// Computes S (from K and Q) or dP (from V and dO) of the warp's keys and score_m queries.
template <typename C>
__device__ __forceinline__ void compute_scores(const Block<C>& block, Scores<C>& s,
                                               uint32_t key_tile, uint32_t query_tile) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
    for (int j = 0; j < query_blocks<C>; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) s[i][j][c] = 0.0f;
  const uint32_t a_address = key_tile + C::Layout::offset(block.first_key() + lane % 16, lane / 16);
  const uint32_t b_address =
      query_tile + C::Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int k = 0; k < C::head_dim / 16; ++k) {
    uint32_t a[C::key_blocks][4];
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
      ldmatrix_x4(a[i], C::Layout::advance(a_address, 2 * k) + i * 16 * C::Layout::bytes);
#pragma unroll
    for (int j = 0; j < query_blocks<C> / 2; ++j) {
      uint32_t b[4];
      ldmatrix_x4(b, C::Layout::advance(b_address, 2 * k) + j * 16 * C::Layout::bytes);
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i) {
        mma_16816<typename C::Element>(s[i][2 * j], a[i], b[0], b[1]);
        mma_16816<typename C::Element>(s[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Computes P * 2^shift from S (shift.cuh).
template <typename C>
__device__ __forceinline__ void compute_p(const Block<C>& block, Scores<C>& s,
                                          uint32_t statistics) {
  const int lane = threadIdx.x % 32;
  const float shifted = block.shift();
#pragma unroll
  for (int j = 0; j < query_blocks<C>; ++j) {
    float2 offset = shared_load_pair(statistics + 4 * (8 * j + 2 * (lane % 4)));
    offset.x = C::shifts ? shifted - offset.x : -offset.x;
    offset.y = C::shifts ? shifted - offset.y : -offset.y;
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        s[i][j][c] =
            exp2_approx(fmaf(s[i][j][c], block.args.scale_log2, c % 2 == 0 ? offset.x : offset.y));
  }
}

// The memory and the named barrier through which a warp passes P to its partner, which has the same
// keys.
template <typename C>
__device__ __forceinline__ uint32_t weights_address(const Block<C>& block) {
  const int lane = threadIdx.x % 32;
  return block.shared + C::p_offset +
         (block.warp_index % C::group_warps * C::key_blocks * query_blocks<C> * 32 + lane) * 16;
}
template <typename C>
__device__ __forceinline__ int weights_barrier(const Block<C>& block) {
  return 1 + block.warp_index % C::group_warps;
}
// Passes P to the partner warp.
template <typename C>
__device__ __forceinline__ void send_p(const Block<C>& block, const Scores<C>& s) {
  const uint32_t to = weights_address(block);
#pragma unroll
  for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
    for (int j = 0; j < query_blocks<C>; ++j)
      shared_store(to + (i * query_blocks<C> + j) * 512,
                   make_float4(s[i][j][0], s[i][j][1], s[i][j][2], s[i][j][3]));
  named_barrier_arrive(weights_barrier(block), 64);
}
// Computes dS from dP and P.
template <typename C>
__device__ __forceinline__ void compute_ds(Scores<C>& dp, const Scores<C>& p,
                                           uint32_t statistics) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < query_blocks<C>; ++j) {
    const float2 delta =
        shared_load_pair(statistics + 4 * C::block_m + 4 * (8 * j + 2 * (lane % 4)));
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        dp[i][j][c] = p[i][j][c] * (dp[i][j][c] - (c % 2 == 0 ? delta.x : delta.y));
  }
}
// Computes dS from dP, and from P of the partner warp.
template <typename C>
__device__ __forceinline__ void receive_p(const Block<C>& block, Scores<C>& dp,
                                          uint32_t statistics) {
  const int lane = threadIdx.x % 32;
  const uint32_t from = weights_address(block);
  named_barrier_sync(weights_barrier(block), 64);
#pragma unroll
  for (int j = 0; j < query_blocks<C>; ++j) {
    const float2 delta =
        shared_load_pair(statistics + 4 * C::block_m + 4 * (8 * j + 2 * (lane % 4)));
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i) {
      const float4 p = shared_load_four(from + (i * query_blocks<C> + j) * 512);
      dp[i][j][0] = p.x * (dp[i][j][0] - delta.x);
      dp[i][j][1] = p.y * (dp[i][j][1] - delta.y);
      dp[i][j][2] = p.z * (dp[i][j][2] - delta.x);
      dp[i][j][3] = p.w * (dp[i][j][3] - delta.y);
    }
  }
}

// Zeroes the elements whose row does not see the key. It selects instead of multiplying by zero,
// because dP or delta may be NaN there.
template <typename C>
__device__ __forceinline__ void apply_mask(const Block<C>& block, Scores<C>& x, int row0) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2 * C::key_blocks; ++r) {
    const int first_row =
        shared_load(block.rows_address() + 4 * (block.first_key() + 8 * r + lane / 4));
    const int unseen = first_row - row0 - 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < query_blocks<C>; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (8 * j + c < unseen) x[r / 2][j][r % 2 * 2 + c] = 0.0f;
  }
}

// Rounds P or dS to A operands.
template <typename C>
__device__ __forceinline__ void pack(const Scores<C>& x, Fragments<C>& a) {
#pragma unroll
  for (int k = 0; k < C::score_m / 16; ++k)
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        a[k][i][r] = Dtype<typename C::Element>::pack(x[i][2 * k + r / 2][r % 2 * 2],
                                                      x[i][2 * k + r / 2][r % 2 * 2 + 1]);
}

// Stores dS for make_dq(). first_chunk: where the queries of `a` begin in the query tile, in units
// of eight queries.
template <typename C>
__device__ __forceinline__ void store_ds(const Block<C>& block, const Fragments<C>& a, int stage,
                                         int first_chunk) {
  const int lane = threadIdx.x % 32;
  const uint32_t tile = block.shared + C::ds_offset + stage * C::ds_bytes;
  const uint32_t to = tile + C::DsLayout::offset(block.first_key() + lane / 4, 0) + lane % 4 * 4;
#pragma unroll
  for (int k = 0; k < C::score_m / 16; ++k)
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int chunk = first_chunk + 2 * k + x / 2;
        shared_store((to ^ chunk << 4) + (16 * i + x % 2 * 8) * C::DsLayout::bytes,
                     static_cast<int>(a[k][i][x]));
      }
}

// Adds the product of P and dO to dV, or the product of dS and Q to dK.
template <typename C>
__device__ __forceinline__ void update(Sums<C>& d, const Fragments<C>& a, uint32_t query_tile) {
  const int lane = threadIdx.x % 32;
  const uint32_t address = query_tile + C::Layout::offset(lane % 16, lane / 16);
#pragma unroll
  for (int k = 0; k < C::score_m / 16; ++k)
#pragma unroll
    for (int j = 0; j < C::head_dim / 16; ++j) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, C::Layout::advance(address, 2 * j) + k * 16 * C::Layout::bytes);
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i) {
        mma_16816<typename C::Element>(d[i][2 * j], a[k][i], b[0], b[1]);
        mma_16816<typename C::Element>(d[i][2 * j + 1], a[k][i], b[2], b[3]);
      }
    }
}

}  // namespace baracuda::sm80::backward
