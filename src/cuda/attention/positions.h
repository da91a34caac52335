// The causal mask as a prefix. Positions rise with the row, so a query row sees the keys 0 ..
// visible - 1 of a chunk. The kernels' masks and tile skipping use these functions.
#pragma once

#include <stdint.h>

#include "baracuda/positions.h"
#include "common/host_device.h"

namespace baracuda {

BARACUDA_HD int64_t position(const baracuda_position_map& map, int64_t i) {
  return i < map.split ? map.head + map.stride * i : map.tail + map.stride * (i - map.split);
}

// The number of rows of an arithmetic run (first, first + stride, ...; count rows) at or before
// pos.
BARACUDA_HD int64_t rows_at_or_before(int64_t first, int64_t stride, int64_t count, int64_t pos) {
  if (pos < first) return 0;
  const int64_t n = (pos - first) / stride + 1;
  return n < count ? n : count;
}

// Keys of a chunk of key_len rows that a query at global position pos sees.
BARACUDA_HD int64_t visible_keys(const baracuda_position_map& k_map, int64_t key_len, int64_t pos) {
  const int64_t split = k_map.split < key_len ? k_map.split : key_len;
  return rows_at_or_before(k_map.head, k_map.stride, split, pos) +
         rows_at_or_before(k_map.tail, k_map.stride, key_len - split, pos);
}

}  // namespace baracuda
