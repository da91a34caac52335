#include "attention/question.h"

#include <cstdio>

#include "common/check_struct.h"
#include "common/error.h"

namespace baracuda {

int32_t check_question(const char* call, const StepParams* problem, const char* reason,
                       int64_t size) {
  const int32_t status = check_struct(call, "params", problem);
  if (status != BARACUDA_OK) return status;
  if (size < 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "size: got %lld, must be at least 0",
                static_cast<long long>(size));
  }
  if (reason == nullptr && size > 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "reason: got NULL, must be given for a size of %lld", static_cast<long long>(size));
  }
  return BARACUDA_OK;
}

int32_t answer(const char* call, const std::string& why, const StepParams& problem, char* reason,
               int64_t size) {
  // A family's own refusal is the better reason: it tells what else the family takes.
  const int32_t status = why.empty() ? check_problem(call, &problem) : BARACUDA_UNSUPPORTED;
  const bool is_invalid = why.empty() && status != BARACUDA_OK;
  std::snprintf(reason, static_cast<size_t>(size), "%s",
                is_invalid ? baracuda_last_error()->message : why.c_str());
  return status;
}

}  // namespace baracuda
