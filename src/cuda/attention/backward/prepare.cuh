// The kernel before the backward steps on tensor cores. It writes delta and lse of every row, and
// zeros to the sums of dQ. If the first addition stores, it resets the words of the query tiles
// instead.
#pragma once

#include <math_constants.h>

#include <type_traits>

#include "attention/backward/shift.cuh"
#include "attention/backward/turn_words.h"
#include "baracuda/element.h"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"

namespace baracuda {

struct PrepareArgs {
  const void* y;
  const void* dy;
  const float* lse;   // natural
  const float* dlse;  // or null
  void* statistics;
  float* dq;
  uint32_t* turns;  // or null, see turn_words.h
  int turn_words;   // words for a tile
  float* norms;  // zero before this kernel; for float16 only
  baracuda_strides y_strides, dy_strides, lse_strides, dlse_strides;
  int heads, query_len, query_tiles;
  float lse_factor;
};

// The dot product of two vectors of eight 16-bit elements.
template <typename Element>
__device__ __forceinline__ float dot8(const uint4& a, const uint4& b) {
  const Element* const x = reinterpret_cast<const Element*>(&a);
  const Element* const y = reinterpret_cast<const Element*>(&b);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    sum = fmaf(Dtype<Element>::load(x[i]), Dtype<Element>::load(y[i]), sum);
  return sum;
}

constexpr int prepare_threads = 256;

// One block for each query tile. delta = rowsum(dy * y) - dlse. A row that sees no key, and a row
// past the end, get an lse above all scores, so that their weights are zero:
// Statistics::hidden_lse. Statistics::store( statistics, row of all tiles, rows, lse * lse_factor,
// delta) writes a row in the step kernel's format.
template <typename Element, int HeadDim, int BlockM, typename Statistics>
static __global__ void __launch_bounds__(prepare_threads) prepare_kernel(const PrepareArgs args) {
  constexpr int lanes = row_lanes<HeadDim>;
  constexpr int rows_at_once = prepare_threads / lanes;
  static_assert(BlockM % rows_at_once == 0, "whole rounds");
  constexpr int rounds = BlockM / rows_at_once;
  constexpr bool shifts = std::is_same_v<Element, __half>;
  launch_dependent_grids();
  await_previous_grids();
  const int64_t tile = blockIdx.x;
  const int batch_head = static_cast<int>(tile / args.query_tiles);
  const int row0 = static_cast<int>(tile % args.query_tiles) * BlockM;
  const int batch = batch_head / args.heads, head = batch_head % args.heads;
  const int lane = threadIdx.x % lanes;
  uint4 y[rounds], dy[rounds];
#pragma unroll
  for (int i = 0; i < rounds; ++i) {
    const int row = row0 + i * rows_at_once + threadIdx.x / lanes;
    y[i] = dy[i] = make_uint4(0, 0, 0, 0);
    if (row >= args.query_len || lane * 8 >= HeadDim) continue;
    const auto address = [&](const void* p, const baracuda_strides& strides) {
      return reinterpret_cast<const uint4*>(static_cast<const Element*>(p) + batch * strides.batch +
                                            head * strides.head + row * strides.seq + lane * 8);
    };
    y[i] = __ldg(address(args.y, args.y_strides));
    dy[i] = __ldg(address(args.dy, args.dy_strides));
  }
  if (args.turns != nullptr) {
    if (threadIdx.x == 0) begin_turns(args.turns, tile, gridDim.x, args.turn_words);
  } else {
    float4* const dq = reinterpret_cast<float4*>(args.dq + tile * (BlockM * HeadDim));
#pragma unroll
    for (int i = 0; i < BlockM * HeadDim / 4 / prepare_threads; ++i)
      dq[i * prepare_threads + threadIdx.x] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  float largest_dy = 0.0f, largest_delta = 0.0f;
  const auto raise = [](float& largest, float x) {
    largest = __int_as_float(max(__float_as_int(largest), __float_as_int(fabsf(x))));
  };
#pragma unroll
  for (int i = 0; i < rounds; ++i) {
    if constexpr (shifts) {
      float square = square8<Element>(dy[i]);
#pragma unroll
      for (int step = lanes / 2; step > 0; step /= 2)
        square += __shfl_xor_sync(0xffffffffu, square, step);
      raise(largest_dy, square);
    }
    float delta = dot8<Element>(y[i], dy[i]);
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2)
      delta += __shfl_xor_sync(0xffffffffu, delta, step);
    if (lane != 0) continue;
    const int in_tile = i * rows_at_once + threadIdx.x / lanes;
    const int64_t row = row0 + in_tile;
    float lse = -CUDART_INF_F;
    if (row < args.query_len) {
      const auto index = [&](const baracuda_strides& strides) {
        return batch * strides.batch + head * strides.head + row * strides.seq;
      };
      lse = args.lse[index(args.lse_strides)];
      if (args.dlse != nullptr) delta -= args.dlse[index(args.dlse_strides)];
    }
    const bool sees_nothing = lse == -CUDART_INF_F;
    if (sees_nothing) delta = 0.0f;
    if constexpr (shifts) raise(largest_delta, delta);
    Statistics::store(args.statistics, tile * BlockM + in_tile, int64_t{gridDim.x} * BlockM,
                      sees_nothing ? Statistics::hidden_lse() : lse * args.lse_factor, delta);
  }
  if constexpr (shifts) {
    raise_norm<prepare_threads>(args.norms + norm_dy, sqrtf(largest_dy));
    raise_norm<prepare_threads>(args.norms + norm_delta, largest_delta);
  }
}

}  // namespace baracuda
