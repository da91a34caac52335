#include "common/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace baracuda {
namespace {

thread_local baracuda_error last_error = {BARACUDA_OK, 0, -1, -1, "", ""};
thread_local bool recorded = false;

int32_t record(int32_t status, int32_t code, const char* call, const char* message, va_list args) {
  recorded = true;
  last_error.status = status;
  last_error.code = code;
  last_error.rank = -1;
  last_error.step = -1;
  std::snprintf(last_error.call, sizeof(last_error.call), "%s", call);
  std::vsnprintf(last_error.message, sizeof(last_error.message), message, args);
  return status;
}

}  // namespace

int32_t fail(int32_t status, const char* call, const char* message, ...) {
  va_list args;
  va_start(args, message);
  record(status, 0, call, message, args);
  va_end(args);
  return status;
}

int32_t fail_with_code(int32_t status, int32_t code, const char* call, const char* message, ...) {
  va_list args;
  va_start(args, message);
  record(status, code, call, message, args);
  va_end(args);
  return status;
}

void locate_failure(int32_t rank, int32_t step) {
  last_error.rank = rank;
  last_error.step = step;
}

void expect_record() { recorded = false; }

int32_t with_record(int32_t status, const char* call, int32_t unrecorded) {
  if (status == BARACUDA_OK || (recorded && last_error.status == status)) return status;
  return fail_with_code(unrecorded != BARACUDA_OK ? unrecorded : status, status, call,
                        "%s returned %d", call, status);
}

int32_t restore_failure(const baracuda_error& failure) {
  recorded = true;
  last_error = failure;
  return failure.status;
}

}  // namespace baracuda

extern "C" const baracuda_error* baracuda_last_error(void) { return &baracuda::last_error; }
