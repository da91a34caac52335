// An all-gather of a few bytes over the ranks of a ring, for set-up. All ranks must call it.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"

namespace baracuda {

// Enqueues the all-gather on the endpoint's ring stream (exchange.h). slots: world_size slots of
// `bytes` bytes in memory of the endpoint's device. Slot r gets the bytes of rank r.
int32_t enqueue_all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                           char* slots);
// Waits for the all-gather and copies the slots into `all`, in host memory.
int32_t fetch_slots(const baracuda_ring_endpoint& endpoint, const char* slots, int64_t bytes,
                    void* all);

}  // namespace baracuda
