// A kernel family, as dispatch calls it. Each lives in its own folder and offers one of these; what
// it takes stands in forward/families.cpp, and dispatch has checked all of that before it calls.
#pragma once

#include <stdint.h>

#include "attention/problem.h"

namespace baracuda {

struct AttentionFamily {
  int32_t (*load)(const StepParams& params);
  // Of a problem that is not empty.
  int32_t (*step)(const StepParams& params, void* stream);
};

const AttentionFamily& host_family();
#if defined(BARACUDA_WITH_CUDA)
const AttentionFamily& simt_family();
const AttentionFamily& sm80_family();
const AttentionFamily& sm90a_family();
#endif

}  // namespace baracuda
