// Preconditions of baracuda_ring_run.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"

namespace baracuda {

// Refuses before the first round whatever can be refused: a rank that fails later leaves its
// neighbours waiting.
int32_t check_calls(const baracuda_ring_call* calls, int32_t count);

}  // namespace baracuda
