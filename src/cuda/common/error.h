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
// From here on, only failures recorded later count for with_record().
void expect_record();
// What a function returned that may be the caller's or a test's. If it failed and left no record,
// this makes one, of the status `unrecorded`, or of the function's if that is BARACUDA_OK.
int32_t with_record(int32_t status, const char* call, int32_t unrecorded = BARACUDA_OK);
// Puts an earlier failure back into the thread's record (clean-up after it may have failed too)
// and returns its status.
int32_t restore_failure(const baracuda_error& failure);
// fail() for a cudaError_t: BARACUDA_CUDA_ERROR with code, or BARACUDA_OK for cudaSuccess.
int32_t check_cuda(int32_t cuda_error, const char* call);

}  // namespace baracuda
