// Which query rows see a key, for the backward kernels on tensor cores.
#pragma once

#include "attention/count_rows.cuh"
#include "attention/positions.h"

namespace baracuda {

// The first query row that sees a key. If no row sees it, no_row, which is past all query tiles. No
// row sees a key past the end.
template <typename Args>
__device__ __forceinline__ int first_row_of(const Args& args, int64_t key) {
  if (key >= args.key_len) return args.no_row;
  if (!args.causal) return 0;
  const baracuda_position_map& q_map = args.device_maps ? args.device_maps[0] : args.q_map;
  const baracuda_position_map& k_map = args.device_maps ? args.device_maps[1] : args.k_map;
  const int64_t before = position(k_map, key) - 1;
  const int rows = args.query_len;
  const int split = static_cast<int>(q_map.split < rows ? q_map.split : rows);
  int blind = 0;
#pragma unroll 1
  for (int part = 0; part < 2; ++part)
    blind += count_at_or_before(part == 0 ? q_map.head : q_map.tail, q_map.stride, args.q_stride,
                                part == 0 ? split : rows - split, before);
  return blind < rows ? blind : args.no_row;
}

}  // namespace baracuda
