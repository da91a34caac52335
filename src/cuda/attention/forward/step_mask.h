// The facts of a step's mask that the host knows, for kernels whose rows see a prefix of the keys.
#pragma once

#include <stdint.h>

#include "attention/interval.h"
#include "attention/problem.h"

namespace baracuda {

// In rings of contiguous and zigzag layouts most causal steps have no diagonal: either all rows see
// the same keys, or the rows of the first half see none and those of the second half see the same
// keys.
struct StepMask {
  bool has_diagonal;  // rows of a tile may see different keys
  bool same_keys;     // rows from first_row on see `keys` keys each, earlier rows none
  int64_t keys;
  int64_t first_row;
};

inline StepMask step_mask(const StepParams& p) {
  if (!borders_may_vary(p)) return {false, true, p.key_len, 0};
  if (p.device_maps != nullptr) return {true, false, 0, 0};
  const ChunkPair pair(mask_of(p), p.q_map, p.query_len, p.k_map, p.key_len);
  const auto keys = [&pair](int64_t row) { return pair.keys_of_row(row).end; };
  const int64_t last = p.query_len - 1;
  const bool one_run = p.q_map.split <= 0 || p.q_map.split > last;
  const int64_t split = one_run ? 0 : p.q_map.split;  // the first row of the second run of rows
  const int64_t before = one_run ? keys(last) : keys(split - 1);
  if (keys(0) != before || keys(split) != keys(last)) return {true, false, 0, 0};
  const bool same = before == keys(last);
  return {false, same || before == 0, keys(last), same ? 0 : split};
}

}  // namespace baracuda
