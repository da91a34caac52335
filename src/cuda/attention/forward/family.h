// A kernel family, as dispatch calls it. Each family has its own folder. forward/families.cpp has
// its facts, which dispatch checks before a call.
#pragma once

#include <stdint.h>

#include "attention/problem.h"

namespace baracuda {

// The blocks of a step's launch, and how many of them a multiprocessor holds. Blocks that stay
// resident leave params.sm_margin multiprocessors free.
struct StepGrid {
  int64_t blocks;
  int64_t blocks_per_multiprocessor;
};

struct AttentionFamily {
  int32_t (*load)(const StepParams& params);
  // Called only for a problem that is not empty.
  int32_t (*step)(const StepParams& params, void* stream);
  int32_t (*grid)(const StepParams& params, StepGrid* grid);
};

// The grid of a step that baracuda_attention_step takes. {0, 0} for the host.
int32_t attention_step_grid(int32_t kernel, const StepParams& params, StepGrid* grid);

const AttentionFamily& host_family();
#if defined(BARACUDA_WITH_CUDA)
const AttentionFamily& simt_family();
const AttentionFamily& sm80_family();
const AttentionFamily& sm90a_family();
#endif

}  // namespace baracuda
