// The kernel after the backward steps on tensor cores. It writes dQ = scale * its sums to the
// caller's memory, in the operands' type.
#pragma once

#include "attention/backward/turn_words.h"
#include "baracuda/element.h"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"

namespace baracuda {

struct FinishArgs {
  // In the order of the accumulators of four warps, each with 16 of a tile's 64 rows:
  // [tile][column / 8][thread][4]. Null: zeros.
  const float* sums;
  const uint32_t* turns;  // or null, see turn_words.h
  int count;  // number of sums of a tile. The first sums of all tiles come before the second ones
  void* dq;
  baracuda_strides dq_strides;
  int heads, query_len, query_tiles;
  float scale;
};

constexpr int finish_threads = 256;

// A block for each query tile. The accumulators of a quad for eight columns are contiguous. They
// belong to two rows, the second eight below the first.
template <typename Element, int HeadDim, int BlockM>
static __global__ void __launch_bounds__(finish_threads) finish_kernel(const FinishArgs args) {
  constexpr int column_groups = HeadDim / 8;
  constexpr int units = column_groups * BlockM / 2;
  static_assert(units % (finish_threads / 2) == 0 && BlockM == 64,
                "rounds of whole warps, over the rows of four");
  await_previous_grids();
  const int64_t tile = blockIdx.x;
  const int batch_head = static_cast<int>(tile / args.query_tiles);
  const int row0 = static_cast<int>(tile % args.query_tiles) * BlockM;
  const auto has_sums = [&](int64_t tile) {
    return args.sums != nullptr && (args.turns == nullptr || args.turns[tile] != no_sums);
  };
  const auto sums_of = [&](int64_t tile) {
    return reinterpret_cast<const float4*>(args.sums + tile * (BlockM * HeadDim));
  };
  const bool has_first = has_sums(tile);
  Element* const out = static_cast<Element*>(args.dq) +
                       batch_head / args.heads * args.dq_strides.batch +
                       batch_head % args.heads * args.dq_strides.head;
#pragma unroll
  for (int i = 0; i < (units + finish_threads - 1) / finish_threads; ++i) {
    const int unit = i * finish_threads + threadIdx.x;
    if (units % finish_threads != 0 && unit >= units) break;
    const int j = unit % column_groups, quad = unit / column_groups;  // one of 32 quads
    float4 x[4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      x[c] = has_first ? __ldcg(sums_of(tile) + j * 128 + quad * 4 + c)
                       : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int k = 1; k < args.count; ++k) {
      const int64_t more = tile + int64_t{k} * gridDim.x;
      if (!has_sums(more)) continue;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float4 y = __ldcg(sums_of(more) + j * 128 + quad * 4 + c);
        x[c] = make_float4(x[c].x + y.x, x[c].y + y.y, x[c].z + y.z, x[c].w + y.w);
      }
    }
    const int row = row0 + quad / 8 * 16 + quad % 8;
    const auto pack = [&](float lo, float hi) {
      return Dtype<Element>::pack(lo * args.scale, hi * args.scale);
    };
    if (row < args.query_len)
      *reinterpret_cast<uint4*>(out + row * args.dq_strides.seq + 8 * j) =
          make_uint4(pack(x[0].x, x[0].y), pack(x[1].x, x[1].y), pack(x[2].x, x[2].y),
                     pack(x[3].x, x[3].y));
    if (row + 8 < args.query_len)
      *reinterpret_cast<uint4*>(out + (row + 8) * args.dq_strides.seq + 8 * j) =
          make_uint4(pack(x[0].z, x[0].w), pack(x[1].z, x[1].w), pack(x[2].z, x[2].w),
                     pack(x[3].z, x[3].w));
  }
}

}  // namespace baracuda
