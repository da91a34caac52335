// What dispatch knows of a kernel family. Each family lives in its own folder and offers one of
// these; dispatch has checked everything that is common to all before it calls.
#pragma once

#include <stdint.h>

#include "baracuda/attention.h"

namespace baracuda {

using StepParams = baracuda_attention_step_params;

struct AttentionFamily {
  const char* name;
  // BARACUDA_OK or a recorded failure: dtype, head_dim, scale, alignment that this family needs.
  int32_t (*check)(const StepParams& params);
  int64_t (*state_bytes)(const StepParams& params);
  int32_t (*load)(const StepParams& params);
  int32_t (*step)(const StepParams& params, void* stream);
};

const AttentionFamily& host_family();
#if defined(BARACUDA_WITH_CUDA)
const AttentionFamily& simt_family();
const AttentionFamily& sm80_family();
const AttentionFamily& sm90a_family();
#endif

}  // namespace baracuda
