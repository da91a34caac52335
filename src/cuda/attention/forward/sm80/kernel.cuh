// The sm80 attention step: mma.sync m16n8k16 on tiles that cp.async loads.
//
// A warp owns 16*row_blocks query rows and all columns of S and O, so a row's statistics live in
// one quad of lanes and P never leaves registers: the accumulator layout of QK is the A operand
// layout of PV. K of the next tile loads under the softmax and PV, V under QK.
#pragma once

#include <math_constants.h>

#include "attention/forward/sm80/epilogue.cuh"
#include "attention/forward/step_args.cuh"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"
#include "common/exponential.cuh"
#include "common/mma_sync.cuh"
#include "common/swizzled_tile.cuh"

namespace baracuda::sm80 {

// LeanLoop: the mainloop has a masked and an unmasked copy, and rescales O only for rows whose
// maximum rose. This pays for warps of 32 rows at head_dim 96 and 128 (4 % on an H100), whose O and
// S leave no registers to hide the rescaling. In other configurations the branches cost more than
// they save.
template <typename Element_, int HeadDim, int BlockM, int BlockN, int Warps, int BlocksPerSm,
          bool LeanLoop>
struct Config {
  using Element = Element_;
  using Layout = RowLayout<HeadDim>;
  static constexpr int head_dim = HeadDim;
  static constexpr int block_m = BlockM;
  static constexpr int block_n = BlockN;
  static constexpr int threads = 32 * Warps;
  static constexpr int blocks_per_sm = BlocksPerSm;
  static constexpr bool lean_loop = LeanLoop;
  static constexpr int warp_rows = BlockM / Warps;
  static constexpr int row_blocks = warp_rows / 16;
  static_assert(BlockM % (16 * Warps) == 0 && BlockN % 16 == 0, "tile is whole mma tiles");
  static constexpr int q_bytes = BlockM * Layout::bytes;
  static constexpr int kv_bytes = BlockN * Layout::bytes;
  static constexpr int limits_offset = q_bytes + 2 * kv_bytes;
  static constexpr int work_offset = limits_offset + BlockM * 4;
  static constexpr int shared_bytes = work_offset + static_cast<int>(sizeof(BlockWork));
};

template <typename C>
struct Warp {
  using Element = typename C::Element;
  using Layout = typename C::Layout;
  static constexpr int rows = 2 * C::row_blocks;  // rows of a lane: block i, half h is 2*i + h

  float o[C::row_blocks][C::head_dim / 8][4];
  float m[rows];  // maximum so far, unscaled; -inf: no key seen
  float l[rows];  // this lane's part of the row sum

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      m[r] = -CUDART_INF_F;
      l[r] = 0.0f;
#pragma unroll
      for (int j = 0; j < C::head_dim / 8; ++j)
        o[r / 2][j][r % 2 * 2] = o[r / 2][j][r % 2 * 2 + 1] = 0.0f;
    }
  }

  __device__ __forceinline__ void scores(float (&s)[C::row_blocks][C::block_n / 8][4],
                                         uint32_t q_address, uint32_t k_address) const {
#pragma unroll
    for (int i = 0; i < C::row_blocks; ++i)
#pragma unroll
      for (int j = 0; j < C::block_n / 8; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) s[i][j][c] = 0.0f;
#pragma unroll
    for (int d = 0; d < C::head_dim / 16; ++d) {
      uint32_t a[C::row_blocks][4];
      const uint32_t q_step = Layout::advance(q_address, 2 * d);
#pragma unroll
      for (int i = 0; i < C::row_blocks; ++i) ldmatrix_x4(a[i], q_step + i * 16 * Layout::bytes);
      const uint32_t k_step = Layout::advance(k_address, 2 * d);
#pragma unroll
      for (int j = 0; j < C::block_n / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4(b, k_step + j * 16 * Layout::bytes);
#pragma unroll
        for (int i = 0; i < C::row_blocks; ++i) {
          mma_16816<Element>(s[i][2 * j], a[i], b[0], b[1]);
          mma_16816<Element>(s[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Columns of the tile from limits[row] - key0 on are not visible.
  __device__ __forceinline__ void mask(float (&s)[C::row_blocks][C::block_n / 8][4],
                                       const int32_t* limits, int key0) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const int visible = limits[r / 2 * 16 + r % 2 * 8 + lane / 4] - key0;
#pragma unroll
      for (int j = 0; j < C::block_n / 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (8 * j + 2 * (lane % 4) + c >= visible) s[r / 2][j][r % 2 * 2 + c] = -CUDART_INF_F;
    }
  }

  // Raises m to the tile's maximum. (Letting m lag by up to 2^8 would spare most rescaling, but
  // then a row's largest weight is no longer exactly 1 in 16 bits: 8 % more error with outliers.)
  __device__ __forceinline__ void raise_maximum(
      const float (&s)[C::row_blocks][C::block_n / 8][4], float scale_log2) {
    float top[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      top[r] = m[r];
#pragma unroll
      for (int j = 0; j < C::block_n / 8; ++j)
        top[r] = fmaxf(fmaxf(top[r], s[r / 2][j][r % 2 * 2]), s[r / 2][j][r % 2 * 2 + 1]);
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
    }
#pragma unroll
    for (int r = 0; r < rows; ++r)
      if (!C::lean_loop || __any_sync(0xffffffffu, top[r] > m[r])) rescale(r, top[r], scale_log2);
  }

  __device__ __forceinline__ void rescale(int r, float top, float scale_log2) {
    const float factor = rescaling(m[r], top, scale_log2);
    m[r] = top;
    l[r] *= factor;
#pragma unroll
    for (int j = 0; j < C::head_dim / 8; ++j) {
      o[r / 2][j][r % 2 * 2] *= factor;
      o[r / 2][j][r % 2 * 2 + 1] *= factor;
    }
  }

  // o += P * V and l += row sums of P, where P = exp2((s - m) * scale_log2). It takes sixteen keys
  // at a time: the exponentials of the next sixteen overlap with the products of these.
  __device__ __forceinline__ void accumulate(const float (&s)[C::row_blocks][C::block_n / 8][4],
                                             float scale_log2, uint32_t v_address) {
    float offset[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) offset[r] = m[r] == -CUDART_INF_F ? 0.0f : -m[r] * scale_log2;
#pragma unroll
    for (int k = 0; k < C::block_n / 16; ++k) {
      uint32_t p[C::row_blocks][4];
#pragma unroll
      for (int i = 0; i < C::row_blocks; ++i)
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const int r = 2 * i + x % 2;
          const float lo =
              exp2_approx(fmaf(s[i][2 * k + x / 2][x % 2 * 2], scale_log2, offset[r]));
          const float hi =
              exp2_approx(fmaf(s[i][2 * k + x / 2][x % 2 * 2 + 1], scale_log2, offset[r]));
          l[r] += lo + hi;
          p[i][x] = Dtype<Element>::pack(lo, hi);
        }
#pragma unroll
      for (int j = 0; j < C::head_dim / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, Layout::advance(v_address, 2 * j) + k * 16 * Layout::bytes);
#pragma unroll
        for (int i = 0; i < C::row_blocks; ++i) {
          mma_16816<Element>(o[i][2 * j], p[i], b[0], b[1]);
          mma_16816<Element>(o[i][2 * j + 1], p[i], b[2], b[3]);
        }
      }
    }
  }
};

template <typename Element>
__device__ __forceinline__ int64_t row_bytes(const baracuda_strides& strides) {
  return strides.seq * static_cast<int64_t>(sizeof(Element));
}

// The address at which this thread starts to copy a tile whose first row is `row`.
template <typename Element, typename Copy>
__device__ __forceinline__ const char* rows_of(const void* tensor, const baracuda_strides& strides,
                                               int64_t batch, int64_t head, int64_t row) {
  return static_cast<const char*>(tensor) +
         (batch * strides.batch + head * strides.head + (row + Copy::last_row()) * strides.seq) *
             static_cast<int64_t>(sizeof(Element)) +
         Copy::chunk() * 16;
}

template <typename C>
__global__ void __launch_bounds__(C::threads, C::blocks_per_sm)
    step_kernel(const __grid_constant__ StepArgs args) {
  using Element = typename C::Element;
  using Layout = typename C::Layout;
  using QCopy = TileCopy<C::head_dim, C::block_m, C::threads>;
  using KvCopy = TileCopy<C::head_dim, C::block_n, C::threads>;
  extern __shared__ __align__(1024) char shared[];

  launch_dependent_grids();
  // The previous step may run until here. If this step follows it directly, its operands are older,
  // and the previous step may run until its state is needed.
  if (!args.follows) await_previous_grids();
  BlockWork work;
  if (!block_work(args, C::block_m, work)) return await_previous_grids();

  const uint32_t q_tile = shared_address(shared);
  const uint32_t k_tile = q_tile + C::q_bytes;
  const uint32_t v_tile = k_tile + C::kv_bytes;
  int32_t* limits = reinterpret_cast<int32_t*>(shared + C::limits_offset);
  volatile BlockWork* parked = reinterpret_cast<BlockWork*>(shared + C::work_offset);

  const char* q_src = rows_of<Element, QCopy>(args.q, args.q_strides, work.batch, work.head,
                                              work.row0);
  QCopy::copy(q_tile, q_src, row_bytes<Element>(args.q_strides) * QCopy::rows_per_pass,
              args.query_len - work.row0);
  cp_async_commit();
  write_row_limits(args, work.row0, C::block_m, limits);
  if (threadIdx.x == 0) park(parked, work);
  __syncthreads();
  const int tiles = ceil_div(limits[C::block_m - 1], C::block_n);
  if (tiles == 0 && !args.first && !args.last) {  // the state stays as it is
    cp_async_wait<0>();
    return await_previous_grids();
  }

  const int64_t k_step = row_bytes<Element>(args.k_strides) * KvCopy::rows_per_pass;
  const int64_t v_step = row_bytes<Element>(args.v_strides) * KvCopy::rows_per_pass;
  const int64_t first_key = static_cast<int64_t>(tiles - 1) * C::block_n;
  const char* k_src = rows_of<Element, KvCopy>(args.k, args.k_strides, work.batch, work.kv_head,
                                               first_key);
  const char* v_src = rows_of<Element, KvCopy>(args.v, args.v_strides, work.batch, work.kv_head,
                                               first_key);
  if (tiles > 0) KvCopy::copy(k_tile, k_src, k_step, args.key_len - first_key);
  cp_async_commit();

  // mma takes B as a pair of adjacent registers, so an ldmatrix of K goes along a row first and
  // one of V along a column first.
  const int lane = threadIdx.x % 32;
  const int warp_row0 = threadIdx.x / 32 * C::warp_rows;
  const uint32_t q_address = q_tile + Layout::offset(warp_row0 + lane % 16, lane / 16);
  const uint32_t k_address = k_tile + Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const uint32_t v_address = v_tile + Layout::offset(lane % 16, lane / 16);

  Warp<C> warp;
  warp.clear();

  const auto mainloop_step = [&](int tile, bool masked) {
    cp_async_wait<0>();
    __syncthreads();  // K has arrived; every warp is done with the previous V
    KvCopy::copy(v_tile, v_src, v_step, args.key_len - int64_t{tile} * C::block_n);
    cp_async_commit();

    float s[C::row_blocks][C::block_n / 8][4];
    warp.scores(s, q_address, k_address);
    if (masked) warp.mask(s, limits + threadIdx.x / 32 * C::warp_rows, tile * C::block_n);

    cp_async_wait<0>();
    __syncthreads();  // V has arrived; every warp is done with this K
    if (tile > 0) {
      KvCopy::copy(k_tile, k_src, k_step, C::block_n);
      cp_async_commit();
    }

    warp.raise_maximum(s, args.scale_log2);
    warp.accumulate(s, args.scale_log2, v_address);
  };
  int tile = tiles - 1;
  if constexpr (C::lean_loop) {
    for (; (tile + 1) * C::block_n > limits[0]; --tile) mainloop_step(tile, true);
    for (; tile >= 0; --tile) mainloop_step(tile, false);
  } else {
    for (; tile >= 0; --tile) mainloop_step(tile, (tile + 1) * C::block_n > limits[0]);
  }

  // Without tiles no warp has waited for Q yet, and y is staged in its place.
  cp_async_wait<0>();
  __syncthreads();
  const BlockWork finished = unpark(parked);
  const int warp_first = threadIdx.x / 32 * C::warp_rows;
  const RowState<C> state(args, finished, limits, warp_first);
  await_previous_grids();
  if (!args.first) state.merge_previous_state(warp);
  if (args.last) {
    state.finish(warp, shared + warp_first * Layout::bytes);
  } else {
    state.save(warp);
  }
}

}  // namespace baracuda::sm80
