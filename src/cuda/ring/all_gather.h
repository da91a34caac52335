// An all-gather of a few bytes, for set-up.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"

namespace baracuda {

// Enqueues the all-gather on the ring stream. slots: memory of the endpoint's device, world_size *
// bytes long.
int32_t enqueue_all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                           char* slots);
// Waits for the all-gather and copies the slots into `all`, in host memory.
int32_t fetch_slots(const baracuda_ring_endpoint& endpoint, const char* slots, int64_t bytes,
                    void* all);

}  // namespace baracuda
