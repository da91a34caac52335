// What the refusal entries of both directions share.
#pragma once

#include <stdint.h>

#include <string>

#include "attention/problem.h"

namespace baracuda {

// Checks the struct and the memory for the reason. BARACUDA_OK, or a failure recorded for `call`.
int32_t check_question(const char* call, const StepParams* problem, const char* reason,
                       int64_t size);
// Writes the reason: `why`, or, where that is empty, what every family refuses in the problem.
int32_t answer(const char* call, const std::string& why, const StepParams& problem, char* reason,
               int64_t size);

}  // namespace baracuda
