// Recording failures for baracuda_last_error().
#pragma once

#include <stdint.h>

#include "baracuda/status.h"

namespace baracuda {

// Fills the thread's error record and returns status. message is printf-style.
int32_t fail(int32_t status, const char* call, const char* message, ...)
    __attribute__((format(printf, 3, 4)));
int32_t fail_with_code(int32_t status, int32_t code, const char* call, const char* message, ...)
    __attribute__((format(printf, 4, 5)));
// Adds where in a ring the thread's last failure happened.
void locate_failure(int32_t rank, int32_t step);
// True if this thread has recorded a failure since expect_record(). Tells whether a caller's
// function left a record.
void expect_record();
bool has_record();
// Puts an earlier failure back into the thread's record (clean-up after it may have failed too)
// and returns its status.
int32_t restore_failure(const baracuda_error& failure);
// fail() for a cudaError_t: BARACUDA_CUDA_ERROR with code, or BARACUDA_OK for cudaSuccess.
int32_t check_cuda(int32_t cuda_error, const char* call);

}  // namespace baracuda
