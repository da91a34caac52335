// An all-gather of a few bytes over the ranks of an NCCL ring, for set-up.
#pragma once

#include <stdint.h>

#include "ring/exchange/nccl/comm.h"
#include "ring/exchange/nccl/watchdog.h"

namespace baracuda {

// Like baracuda_ring_all_gather(), but a deadline, a failure of the ring or a signal ends its wait;
// the communicator has then failed.
int32_t nccl_all_gather(baracuda_nccl_comm& comm, const void* mine, int64_t bytes, void* all,
                        const TimeLimit& limit);

}  // namespace baracuda
