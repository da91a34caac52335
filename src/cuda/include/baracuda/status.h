// Status codes of every C entry, and the details of the last failure on this thread.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Every entry returns one of these as int32_t. A failure also leaves its details in a
// thread-local record, read by baracuda_last_error().
enum baracuda_status {
  BARACUDA_OK = 0,
  BARACUDA_INVALID_ARGUMENT = 1,  // an argument that no kernel could serve
  BARACUDA_UNSUPPORTED = 2,       // legal, but not served by this kernel
  BARACUDA_MISALIGNED = 3,        // a pointer or stride breaks the kernel's alignment
  BARACUDA_UNAVAILABLE = 4,       // not in this build, or a library is not loaded
  BARACUDA_TIMEOUT = 5,           // a deadline passed
  BARACUDA_ABORTED = 6,           // the communicator was aborted, by us or by a peer
  BARACUDA_OUT_OF_MEMORY = 7,     // host memory
  BARACUDA_CUDA_ERROR = 8,        // code holds the cudaError_t
  BARACUDA_NCCL_ERROR = 9,        // code holds the ncclResult_t
  BARACUDA_TRANSPORT_ERROR = 10,  // a caller's own transport failed; code is the caller's
  BARACUDA_INTERRUPTED = 11,      // a signal ended the call: see baracuda_set_signal_check
};

typedef struct baracuda_error {
  int32_t status;      // enum baracuda_status
  int32_t code;        // cudaError_t, ncclResult_t or the transport's code; else 0
  int32_t rank;        // the rank that failed, -1 where there is none
  int32_t step;        // the ring step that failed, -1 where there is none
  char call[64];       // the failed call, e.g. "ncclGroupEnd"
  char message[320];   // what was wrong and what it must be
} baracuda_error;

// The last failure on the calling thread. Valid until the thread's next failing call.
BARACUDA_API const baracuda_error* baracuda_last_error(void);

#ifdef __cplusplus
}
#endif
