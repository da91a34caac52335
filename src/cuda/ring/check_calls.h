// Checks the arguments of baracuda_ring_run(), the ring loop.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"

namespace baracuda {

// Makes every check that is possible before the first round, because a rank that fails later leaves
// its neighbours waiting.
int32_t check_calls(const baracuda_ring_call* calls, int32_t count);

}  // namespace baracuda
