// The program of the forward pass: what the ring loop calls for an attention step.
#include <cstdint>

#include "attention/forward/family.h"
#include "attention/forward/ring_step.h"
#include "baracuda/attention_ring.h"
#include "baracuda/status.h"
#include "common/check_struct.h"

namespace baracuda {
namespace {

using Problem = baracuda_attention_ring_problem;

const Problem& as_problem(const void* problem) { return *static_cast<const Problem*>(problem); }

int32_t check(const void* given, const baracuda_ring_step* at) {
  constexpr const char* call = "baracuda_attention_ring_program";
  const Problem* problem = static_cast<const Problem*>(given);
  const int32_t status = check_struct(call, "problem", problem);
  if (status != BARACUDA_OK) return status;
  return check_ring_step(call, problem->step, problem->layout, at->world_size);
}

int32_t is_live(const void* problem, const baracuda_ring_step* at) {
  return ForwardRingStep(as_problem(problem), *at).launches() ? 1 : 0;
}

int32_t grid(const void* problem, const baracuda_ring_step* at, baracuda_ring_grid* grid) {
  StepGrid found{};
  const int32_t status = attention_step_grid(
      as_problem(problem).kernel, ForwardRingStep(as_problem(problem), *at).params(), &found);
  *grid = {found.blocks, found.blocks_per_multiprocessor};
  return status;
}

int32_t launch(const void* problem, const baracuda_ring_step* at) {
  const baracuda_attention_step_params params = ForwardRingStep(as_problem(problem), *at).params();
  return baracuda_attention_step(as_problem(problem).kernel, &params, at->stream);
}

constexpr baracuda_ring_program program = {
    sizeof(baracuda_ring_program), 1, 0, check, is_live, grid, launch, nullptr};

}  // namespace
}  // namespace baracuda

extern "C" const baracuda_ring_program* baracuda_attention_ring_program(void) {
  return &baracuda::program;
}
