// Room for an exchange beside a kernel that takes every multiprocessor.
//
// A step and the exchange beside it become ready together, and NCCL's kernel is the later of the
// two to reach the device, by some microseconds. Blocks that fill the device by then keep it out
// until the first of them end: for a whole step, where a step is one wave of blocks.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/forward/family.h"

namespace baracuda {

int32_t load_head_start();

// Holds the stream up for as long as that takes.
int32_t give_head_start(cudaStream_t stream);

// The same ahead of a step of so many blocks, so many of them to a multiprocessor, where they would
// fill the device although p.sm_margin multiprocessors are wanted. Not where they need another wave
// without these: the exchange then comes when the first ends.
int32_t make_way(const StepParams& p, int64_t blocks, int64_t per_multiprocessor,
                 cudaStream_t stream);

// The same ahead of a step whose resident blocks, one to a multiprocessor, leave p.sm_margin of the
// device's free: room enough for an exchange, but where its blocks come in clusters
// (BARACUDA_STEP_GIVES_WAY), which want neighbours.
int32_t make_way_for_clusters(const StepParams& p, int64_t blocks, int multiprocessors,
                              cudaStream_t stream);

}  // namespace baracuda
