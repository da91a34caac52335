// The positions of a rank's local rows in the whole sequence.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Global position of local row i: head + stride*i below split, tail + stride*(i - split) from it
// on. Must rise with i (so visible keys are always a prefix of the chunk) and be
// between -2^62 and 2^62. stride >= 1. head and tail are above -2^62 and at most 2^62, even if
// no row is there.
typedef struct baracuda_position_map {
  int64_t head;
  int64_t tail;
  int64_t stride;
  int64_t split;
} baracuda_position_map;

enum baracuda_sequence_layout {
  BARACUDA_CONTIGUOUS = 0,  // pos(i) = r*L + i
  BARACUDA_ZIGZAG = 1,      // split = ceil(L/2); r*split + i, then P*split + (P-1-r)*(L-split) + i'
  BARACUDA_STRIPED = 2,     // pos(i) = i*P + r
};

// The map of a rank with `length` rows. An unknown layout, a rank outside [0, world_size), a
// world_size below 1, a negative length, and positions that do not fit in 63 bits get a map of
// stride 0, which every step refuses whose mask depends on positions.
BARACUDA_API baracuda_position_map baracuda_layout_map(int32_t layout, int32_t rank,
                                                       int32_t world_size, int64_t length);

#ifdef __cplusplus
}
#endif
