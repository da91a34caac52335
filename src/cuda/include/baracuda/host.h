// What kernels on the host run on.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Threads that host kernels use (default: the CPUs this process may run on).
BARACUDA_API int32_t baracuda_host_threads(void);
BARACUDA_API int32_t baracuda_set_host_threads(int32_t threads);

// Instruction set host kernels dispatch to: "avx512", "avx2" or "baseline".
BARACUDA_API const char* baracuda_host_isa(void);

#ifdef __cplusplus
}
#endif
