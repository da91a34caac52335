// Preconditions of baracuda_ring_run.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"

namespace baracuda {

// Refuses all that can be refused before the first exchange. After it, a rank that fails leaves its
// neighbours waiting.
int32_t check_calls(const baracuda_ring_call* calls, int32_t count);

}  // namespace baracuda
