// What this library was built from and with.
#pragma once

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

BARACUDA_API const char* baracuda_version(void);
// First 16 hex digits of the hash over src/. Evidence files name it, which ties them to this code.
BARACUDA_API const char* baracuda_source_hash(void);
BARACUDA_API const char* baracuda_architectures(void);  // "sm_80 sm_90 compute_80", "" without CUDA
BARACUDA_API const char* baracuda_nvcc_version(void);   // "" without CUDA
BARACUDA_API const char* baracuda_cxx_compiler(void);

#ifdef __cplusplus
}
#endif
