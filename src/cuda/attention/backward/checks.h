// Checks of a backward call, for code that calls the entries itself.
#pragma once

#include <stdint.h>

#include "attention/backward/family.h"

namespace baracuda {

// Checks the problem, and dk and dv as one step that writes them does. BARACUDA_OK, or a failure
// recorded for `call`.
int32_t check_key_gradients(const char* call, int32_t kernel, const BackwardParams& params);

}  // namespace baracuda
