// What dispatch knows of a kernel family. Each family lives in its own folder and offers one of
// these; dispatch has checked everything that is common to all before it calls.
#pragma once

#include <stdint.h>

#include "baracuda/attention.h"

namespace baracuda {

using StepParams = baracuda_attention_step_params;

// The blocks of a step's launch, and how many of them a multiprocessor holds. Blocks that stay
// resident leave params.sm_margin multiprocessors free.
struct StepGrid {
  int64_t blocks;
  int64_t blocks_per_multiprocessor;
};

struct AttentionFamily {
  const char* name;
  // BARACUDA_OK or a recorded failure: dtype, head_dim, scale, alignment that this family needs.
  int32_t (*check)(const StepParams& params);
  int64_t (*state_bytes)(const StepParams& params);
  int32_t (*load)(const StepParams& params);
  int32_t (*step)(const StepParams& params, void* stream);
  int32_t (*grid)(const StepParams& params, StepGrid* grid);
};

// Of a step that baracuda_attention_step would take. {0, 0} for the host.
int32_t attention_step_grid(int32_t kernel, const StepParams& params, StepGrid* grid);

const AttentionFamily& host_family();
#if defined(BARACUDA_WITH_CUDA)
const AttentionFamily& simt_family();
const AttentionFamily& sm80_family();
const AttentionFamily& sm90a_family();
#endif

}  // namespace baracuda
