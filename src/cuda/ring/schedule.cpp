// The hops of the plain ring.
#include "baracuda/ring.h"

extern "C" {

void baracuda_ring_schedule(int32_t rank, int32_t world_size, baracuda_ring_hop* hops) {
  if (hops == nullptr || rank < 0 || rank >= world_size) return;
  const int32_t next = (rank + 1) % world_size;
  const int32_t previous = (rank + world_size - 1) % world_size;
  for (int32_t step = 0; step < world_size; ++step) {
    hops[step] = {(rank - step + world_size) % world_size, next, previous};
  }
}

}  // extern "C"
