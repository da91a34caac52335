// Where the rows of a rank's shard lie in the sequence, and the hops of the plain ring.
#include "baracuda/ring.h"

extern "C" {

baracuda_position_map baracuda_layout_map(int32_t layout, int32_t rank, int32_t world_size,
                                          int64_t length) {
  const int64_t r = rank;
  const int64_t p = world_size;
  switch (layout) {
    case BARACUDA_ZIGZAG: {
      // An odd length gives the extra row to the head, on every rank alike.
      const int64_t split = (length + 1) / 2;
      return {r * split, p * split + (p - 1 - r) * (length - split), 1, split};
    }
    case BARACUDA_STRIPED:
      return {r, r + p * length, p, length};
    default:
      return {r * length, (r + 1) * length, 1, length};
  }
}

void baracuda_ring_schedule(int32_t rank, int32_t world_size, baracuda_ring_hop* hops) {
  const int32_t next = (rank + 1) % world_size;
  const int32_t previous = (rank + world_size - 1) % world_size;
  for (int32_t step = 0; step < world_size; ++step) {
    hops[step] = {(rank - step + world_size) % world_size, next, previous};
  }
}

}  // extern "C"
