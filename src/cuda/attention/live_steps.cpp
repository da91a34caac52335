#include "attention/live_steps.h"

#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"

namespace baracuda {

int32_t check_ring_step(const char* call, const baracuda_attention_step_params& step,
                        int32_t layout, int32_t world_size) {
  const auto invalid = [call](const char* message, auto... args) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, message, args...);
  };
  const int32_t status = check_struct(call, "step", &step);
  if (status != BARACUDA_OK) return status;
  if (step.batch < 0 || step.heads < 0 || step.query_len < 0 || step.key_len < 0) {
    return invalid("step.batch, heads, query_len, key_len: got %lld, %lld, %lld, %lld, must be at "
                   "least 0",
                   static_cast<long long>(step.batch), static_cast<long long>(step.heads),
                   static_cast<long long>(step.query_len), static_cast<long long>(step.key_len));
  }
  const int64_t longest = INT64_MAX / 4 / world_size;
  if (step.query_len > longest || step.key_len > longest) {
    return invalid("step.query_len, key_len: got %lld and %lld, must be at most %lld at world_size "
                   "%d",
                   static_cast<long long>(step.query_len), static_cast<long long>(step.key_len),
                   static_cast<long long>(longest), world_size);
  }
  if (step.device_maps != nullptr) {
    return invalid("%s", "step.device_maps: got a pointer, must be NULL in a ring");
  }
  if (layout < BARACUDA_CONTIGUOUS || layout > BARACUDA_STRIPED) {
    return invalid("layout: got %d, must be a baracuda_sequence_layout, 0 to 2", layout);
  }
  return BARACUDA_OK;
}

}  // namespace baracuda
