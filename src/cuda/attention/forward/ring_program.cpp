// The program of the forward pass: what the ring loop calls for an attention step.
#include <cstdint>

#include "attention/forward/family.h"
#include "attention/forward/live_steps.h"
#include "baracuda/attention_ring.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace {

using Problem = baracuda_attention_ring_problem;

const Problem& as_problem(const void* problem) { return *static_cast<const Problem*>(problem); }

template <typename... Args>
int32_t invalid(const char* message, Args... args) {
  return fail(BARACUDA_INVALID_ARGUMENT, "baracuda_attention_ring_program", message, args...);
}

int32_t check(const void* given, const baracuda_ring_step* at) {
  if (given == nullptr || as_problem(given).struct_size != sizeof(Problem)) {
    return invalid("problem: struct_size must be %zu", sizeof(Problem));
  }
  const Problem& problem = as_problem(given);
  const baracuda_attention_step_params& step = problem.step;
  if (step.struct_size != sizeof(baracuda_attention_step_params)) {
    return invalid("step: struct_size must be %zu", sizeof(baracuda_attention_step_params));
  }
  if (step.batch < 0 || step.heads < 0 || step.query_len < 0 || step.key_len < 0) {
    return invalid("step: batch, heads, query_len and key_len must not be negative, got %lld, "
                   "%lld, %lld, %lld",
                   static_cast<long long>(step.batch), static_cast<long long>(step.heads),
                   static_cast<long long>(step.query_len), static_cast<long long>(step.key_len));
  }
  const int64_t longest = INT64_MAX / 4 / at->world_size;
  if (step.query_len > longest || step.key_len > longest) {
    return invalid("step: query_len and key_len must be at most %lld at world_size %d",
                   static_cast<long long>(longest), at->world_size);
  }
  if (step.device_maps != nullptr) {
    return invalid("%s", "step.device_maps: must be NULL, the ring knows its ranks");
  }
  if (problem.layout < BARACUDA_CONTIGUOUS || problem.layout > BARACUDA_STRIPED) {
    return invalid("layout: %d is not a baracuda_sequence_layout", problem.layout);
  }
  return BARACUDA_OK;
}

int32_t is_live(const void* problem, const baracuda_ring_step* at) {
  return LiveSteps(as_problem(problem), *at).launches(at->step) ? 1 : 0;
}

int32_t grid(const void* problem, const baracuda_ring_step* at, baracuda_ring_grid* grid) {
  StepGrid found{};
  const int32_t status = attention_step_grid(as_problem(problem).kernel,
                                             LiveSteps(as_problem(problem), *at).launch_params(),
                                             &found);
  *grid = {found.blocks, found.blocks_per_multiprocessor};
  return status;
}

int32_t launch(const void* problem, const baracuda_ring_step* at) {
  const baracuda_attention_step_params params =
      LiveSteps(as_problem(problem), *at).launch_params();
  return baracuda_attention_step(as_problem(problem).kernel, &params, at->stream);
}

constexpr baracuda_ring_program program = {
    sizeof(baracuda_ring_program), 1, 0, check, is_live, grid, launch, nullptr};

}  // namespace
}  // namespace baracuda

extern "C" const baracuda_ring_program* baracuda_attention_ring_program(void) {
  return &baracuda::program;
}
