#include "attention/live_steps.h"

#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {

int32_t check_ring_step(const char* call, const baracuda_attention_step_params& step,
                        int32_t layout, int32_t world_size) {
  const auto invalid = [call](const char* message, auto... args) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, message, args...);
  };
  if (step.struct_size != sizeof(baracuda_attention_step_params)) {
    return invalid("step: struct_size must be %zu", sizeof(baracuda_attention_step_params));
  }
  if (step.batch < 0 || step.heads < 0 || step.query_len < 0 || step.key_len < 0) {
    return invalid("step: batch, heads, query_len and key_len must not be negative, got %lld, "
                   "%lld, %lld, %lld",
                   static_cast<long long>(step.batch), static_cast<long long>(step.heads),
                   static_cast<long long>(step.query_len), static_cast<long long>(step.key_len));
  }
  const int64_t longest = INT64_MAX / 4 / world_size;
  if (step.query_len > longest || step.key_len > longest) {
    return invalid("step: query_len and key_len must be at most %lld at world_size %d",
                   static_cast<long long>(longest), world_size);
  }
  if (step.device_maps != nullptr) {
    return invalid("%s", "step.device_maps: got a pointer, must be NULL: the ring knows its ranks");
  }
  if (layout < BARACUDA_CONTIGUOUS || layout > BARACUDA_STRIPED) {
    return invalid("layout: got %d, must be a baracuda_sequence_layout", layout);
  }
  return BARACUDA_OK;
}

}  // namespace baracuda
