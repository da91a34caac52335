// What the rows of a step see, as far as the host knows it.
#pragma once

#include <stdint.h>

#include "attention/forward/family.h"
#include "attention/positions.h"

namespace baracuda {

// In the rings of contiguous and zigzag layouts most causal steps have no diagonal: all rows of a
// chunk see the same keys, or those of its first half none and those of the other the same.
struct Sight {
  bool has_diagonal;  // rows of a tile may see different keys
  bool same_keys;     // all rows from first_row on see so many keys, those before it none
  int64_t keys;
  int64_t first_row;
};

inline Sight sight_of(const StepParams& p) {
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0) return {false, true, p.key_len, 0};
  if (p.device_maps != nullptr || p.query_len == 0) return {true, false, 0, 0};
  const auto visible = [&p](int64_t row) {
    return visible_keys(p.k_map, p.key_len, position(p.q_map, row));
  };
  const int64_t last = p.query_len - 1;
  const bool one_run = p.q_map.split <= 0 || p.q_map.split > last;
  const int64_t split = one_run ? 0 : p.q_map.split;  // of two runs of rows the second's first
  const int64_t before = one_run ? visible(last) : visible(split - 1);
  if (visible(0) != before || visible(split) != visible(last)) return {true, false, 0, 0};
  const bool same = before == visible(last);
  return {false, same || before == 0, visible(last), same ? 0 : split};
}

}  // namespace baracuda
