// The mask of a step, as far as the host knows it, for kernels whose rows see the first keys of a
// chunk.
#pragma once

#include <stdint.h>

#include "attention/interval.h"
#include "attention/problem.h"

namespace baracuda {

// In the rings of contiguous and zigzag layouts most causal steps have no diagonal: all rows of a
// chunk see the same keys, or those of its first half none and those of the other the same.
struct StepMask {
  bool has_diagonal;  // rows of a tile may see different keys
  bool same_keys;     // all rows from first_row on see so many keys, those before it none
  int64_t keys;
  int64_t first_row;
};

inline StepMask step_mask(const StepParams& p) {
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0) return {false, true, p.key_len, 0};
  if (p.device_maps != nullptr) return {true, false, 0, 0};
  const ChunkPair pair(mask_of(p), p.q_map, p.query_len, p.k_map, p.key_len);
  const auto keys = [&pair](int64_t row) { return pair.keys_of_row(row).end; };
  const int64_t last = p.query_len - 1;
  const bool one_run = p.q_map.split <= 0 || p.q_map.split > last;
  const int64_t split = one_run ? 0 : p.q_map.split;  // of two runs of rows the second's first
  const int64_t before = one_run ? keys(last) : keys(split - 1);
  if (keys(0) != before || keys(split) != keys(last)) return {true, false, 0, 0};
  const bool same = before == keys(last);
  return {false, same || before == 0, keys(last), same ? 0 : split};
}

}  // namespace baracuda
