// The positions of a rank's rows in the sequence.
#include "baracuda/positions.h"

extern "C" baracuda_position_map baracuda_layout_map(int32_t layout, int32_t rank,
                                                     int32_t world_size, int64_t length) {
  const int64_t r = rank;
  const int64_t p = world_size;
  switch (layout) {
    case BARACUDA_ZIGZAG: {
      // With an odd length the head has one row more than the tail, on every rank.
      const int64_t split = (length + 1) / 2;
      return {r * split, p * split + (p - 1 - r) * (length - split), 1, split};
    }
    case BARACUDA_STRIPED:
      return {r, r + p * length, p, length};
    default:
      return {r * length, (r + 1) * length, 1, length};
  }
}
