// Threads, progress and instruction set of the kernels on the host.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Threads that host kernels use (default: the CPUs this process may run on).
BARACUDA_API int32_t baracuda_host_threads(void);
BARACUDA_API int32_t baracuda_set_host_threads(int32_t threads);

// The progress of a step on the host, for another thread to read.
typedef struct baracuda_progress {
  int64_t done;   // items that were begun
  int64_t total;  // 0 between steps
} baracuda_progress;

// Host steps of the calling thread write their progress here from now on; NULL stops that.
BARACUDA_API void baracuda_watch_progress(baracuda_progress* progress);

// Instruction set host kernels dispatch to: "avx512", "avx2" or "baseline".
BARACUDA_API const char* baracuda_host_isa(void);

#ifdef __cplusplus
}
#endif
