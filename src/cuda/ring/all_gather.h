// Gathers a few bytes of every rank on every rank.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"

namespace baracuda {

// Enqueues on the ring stream the messages that bring the bytes of every rank into slots, memory of
// the endpoint's device with room for world_size * bytes.
int32_t enqueue_all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                           char* slots);
// Waits for the slots, and copies them into host memory.
int32_t fetch_slots(const baracuda_ring_endpoint& endpoint, const char* slots, int64_t bytes,
                    void* all);

}  // namespace baracuda
