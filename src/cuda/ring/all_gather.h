// A few bytes from every rank to every rank.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"

namespace baracuda {

// Enqueues on the ring stream what brings every rank's bytes into slots, memory of the endpoint's
// device for world_size * bytes.
int32_t enqueue_all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                           char* slots);
// Copies slots, once they are there, into host memory.
int32_t fetch_slots(const baracuda_ring_endpoint& endpoint, const char* slots, int64_t bytes,
                    void* all);

}  // namespace baracuda
