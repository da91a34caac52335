// What the library asks of the CUDA runtime besides launching kernels. In a build without CUDA
// every entry returns BARACUDA_UNAVAILABLE (baracuda_cuda_device_count gives 0).
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

BARACUDA_API int32_t baracuda_cuda_built(void);             // 1 if built with CUDA
BARACUDA_API int32_t baracuda_cuda_runtime_version(void);   // 13000 for 13.0; 0 without CUDA
// 0 if the driver is missing or too old. A missing GPU is not an error.
BARACUDA_API int32_t baracuda_cuda_driver_version(int32_t* version);
BARACUDA_API int32_t baracuda_cuda_device_count(int32_t* count);
BARACUDA_API int32_t baracuda_cuda_current_device(int32_t* device);
BARACUDA_API int32_t baracuda_cuda_set_device(int32_t device);

typedef struct baracuda_cuda_device {
  char name[128];
  int32_t compute_capability;  // 90 for 9.0
  int32_t multiprocessors;
  int32_t max_shared_bytes;    // opt-in, per block
  int64_t total_bytes;
} baracuda_cuda_device;
BARACUDA_API int32_t baracuda_cuda_device_info(int32_t device, baracuda_cuda_device* info);

// The device of a stream. The current device for the default streams, and for a stream that is
// being captured, whose device CUDA does not tell.
BARACUDA_API int32_t baracuda_cuda_stream_device(void* stream, int32_t* device);
// *device gets the ordinal of device or managed memory, -1 for host memory (pinned or not), and -2
// for a pointer that CUDA does not know.
BARACUDA_API int32_t baracuda_cuda_pointer_device(const void* pointer, int32_t* device);
BARACUDA_API int32_t baracuda_cuda_stream_synchronize(void* stream);
BARACUDA_API int32_t baracuda_cuda_stream_query(void* stream, int32_t* done);
BARACUDA_API int32_t baracuda_cuda_stream_is_capturing(void* stream, int32_t* capturing);
BARACUDA_API int32_t baracuda_cuda_copy(void* dst, const void* src, int64_t bytes, void* stream);

// Sets how long calls, and calls that wait for other ranks, learn of signals: on the process's main
// thread they call check about every 50 ms, with no lock held. If it returns not 0, the call ends
// with BARACUDA_INTERRUPTED; its outputs are then undefined, and its ring must be aborted. NULL:
// signals end nothing.
BARACUDA_API int32_t baracuda_set_signal_check(int32_t (*check)(void));

// Memory of the current device in an allocation of its own (cudaMalloc), which other processes can
// open. Freeing it waits for the device; data may be NULL.
BARACUDA_API int32_t baracuda_cuda_allocate(int64_t bytes, void** data);
BARACUDA_API void baracuda_cuda_free(void* data);

#ifdef __cplusplus
}
#endif
