// The positions of a rank's rows in the sequence.
#include "baracuda/positions.h"

namespace {

// Whether the arguments are a rank's of a ring whose positions fit in 63 bits.
bool has_positions(int32_t rank, int32_t world_size, int64_t length) {
  return world_size >= 1 && rank >= 0 && rank < world_size && length >= 0 &&
         length <= INT64_MAX / world_size - 1;
}

}  // namespace

extern "C" baracuda_position_map baracuda_layout_map(int32_t layout, int32_t rank,
                                                     int32_t world_size, int64_t length) {
  if (!has_positions(rank, world_size, length)) return {0, 0, 0, 0};
  const int64_t r = rank;
  const int64_t p = world_size;
  switch (layout) {
    case BARACUDA_ZIGZAG: {
      // With an odd length the head has one row more than the tail, on every rank.
      const int64_t split = (length + 1) / 2;
      return {r * split, p * split + (p - 1 - r) * (length - split), 1, split};
    }
    case BARACUDA_STRIPED:
      return {r, p * length, p, length};
    case BARACUDA_CONTIGUOUS:
      return {r * length, (r + 1) * length, 1, length};
    default:
      return {0, 0, 0, 0};
  }
}
