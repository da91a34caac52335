// The backward's program for the ring loop.
#include <cstdint>

#include "attention/backward/checks.h"
#include "attention/backward/family.h"
#include "attention/live_steps.h"
#include "baracuda/attention_ring.h"
#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"

namespace baracuda {
namespace {

using Problem = baracuda_attention_backward_ring_problem;

constexpr const char* kCall = "baracuda_attention_backward_ring_program";
constexpr int32_t kGradients = 1;  // the payload of dk and dv

const Problem& as_problem(const void* problem) { return *static_cast<const Problem*>(problem); }

int32_t accumulator_of(const StepParams& p) {
  return p.element == BARACUDA_F64 ? BARACUDA_F64 : BARACUDA_F32;
}

class BackwardRingStep {
 public:
  BackwardRingStep(const void* problem, const baracuda_ring_step& at)
      : problem_(as_problem(problem)),
        at_(at),
        live_(problem_.call.step, problem_.layout, at) {}

  // If no row sees a key in any step, the first step still launches, because dq must become zero.
  // In a ring of one rank it always launches, because it also writes dk and dv.
  bool launches() const {
    if (live_.is_live(at_.step)) return true;
    return at_.step == 0 && (at_.world_size == 1 || (live_.has_rows() && !live_.is_any_live(1)));
  }

  // With dq_holds_share no step that keeps its share apart may write dq.
  bool must_spare_dq() const { return problem_.dq_holds_share != 0 && at_.step >= 2; }

  // True where a sum comes home, if no launch and no settle() has written dq: the last live step had
  // to spare it, and was not the last step of the ring.
  bool must_finish_at_home() const {
    return problem_.dq_holds_share != 0 && !live_.is_live(at_.world_size - 1) &&
           live_.is_any_live(2);
  }

  BackwardParams params() const {
    BackwardParams params = problem_.call;
    params.step = live_.at_hand();
    if (must_spare_dq()) params.step.flags &= ~uint32_t{BARACUDA_STEP_LAST};
    if (at_.world_size == 1) return params;
    params.dk = at_.chunk[kGradients][0];
    params.dv = at_.chunk[kGradients][1];
    params.dk_strides = params.dv_strides = dense_key_strides(params.step);
    params.kv_gradient_element = accumulator_of(params.step);
    return params;
  }

  // Of the launch that writes dq after several steps that spared it.
  BackwardParams finish_params() const {
    BackwardParams made = params();
    made.step.flags &= ~uint32_t{BARACUDA_STEP_FIRST};
    made.step.flags |= BARACUDA_STEP_LAST;
    return made;
  }

  // A travelling sum stays in the buffer that received it. The chunk's own rank rounds it once.
  void fill(GradientSum (&sums)[2]) const {
    const BackwardParams& call = problem_.call;
    const bool is_home = at_.step == at_.world_size;
    for (int32_t i = 0; i < 2; ++i) {
      void* const received = at_.received[kGradients][i];
      sums[i] = {received, at_.chunk[kGradients][i], received, dense_key_strides(call.step),
                 accumulator_of(call.step)};
      if (!is_home) continue;
      sums[i].out = i == 0 ? call.dk : call.dv;
      sums[i].strides = i == 0 ? call.dk_strides : call.dv_strides;
      sums[i].element = call.kv_gradient_element;
    }
  }

 private:
  const Problem& problem_;
  const baracuda_ring_step& at_;
  const LiveSteps live_;
};

int32_t check(const void* given, const baracuda_ring_step* at) {
  const Problem* problem = static_cast<const Problem*>(given);
  int32_t status = check_struct(kCall, "problem", problem);
  if (status == BARACUDA_OK) status = check_struct(kCall, "problem.call", &problem->call);
  if (status != BARACUDA_OK) return status;
  if (problem->dq_holds_share != 0 && baracuda_attention_backward_finishes(problem->kernel) != 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "dq_holds_share: got %d for kernel %d, must be 0: a step of it writes dq",
                problem->dq_holds_share, problem->kernel);
  }
  status = check_ring_step(kCall, problem->call.step, problem->layout, at->world_size);
  if (status != BARACUDA_OK || at->world_size == 1) return status;
  // The steps write their shares elsewhere, so none of them looks at the caller's dk and dv.
  return check_key_gradients(kCall, problem->kernel, problem->call);
}

int32_t is_live(const void* problem, const baracuda_ring_step* at) {
  return BackwardRingStep(problem, *at).launches() ? 1 : 0;
}

int32_t grid(const void* problem, const baracuda_ring_step* at, baracuda_ring_grid* grid) {
  StepGrid found{};
  const int32_t status = backward_step_grid(
      as_problem(problem).kernel, BackwardRingStep(problem, *at).params(), &found);
  *grid = {found.blocks, found.blocks_per_multiprocessor};
  return status;
}

bool is_last_launch(const baracuda_ring_step& at) { return at.step + 1 == at.world_size; }

int32_t launch(const void* problem, const baracuda_ring_step* at) {
  const int32_t kernel = as_problem(problem).kernel;
  const BackwardParams params = BackwardRingStep(problem, *at).params();
  if ((params.step.flags & BARACUDA_STEP_FIRST) != 0) {
    const int32_t status = baracuda_attention_backward_prepare(kernel, &params, at->stream);
    if (status != BARACUDA_OK) return status;
  }
  const int32_t status = step_without_finish(kernel, params, at->stream);
  if (status != BARACUDA_OK || is_last_launch(*at)) return status;
  return finish_step(kernel, params, at->stream);
}

// No other rank needs dq, so it is written during the last exchange.
int32_t settle(const void* problem, const baracuda_ring_step* at) {
  const BackwardRingStep step(problem, *at);
  return finish_step(as_problem(problem).kernel,
                     step.must_spare_dq() ? step.finish_params() : step.params(), at->stream);
}

// The step at hand is none of the ring, so the operands are those of step 0.
int32_t finish_at_home(int32_t kernel, const void* problem, const baracuda_ring_step& at) {
  baracuda_ring_step first = at;
  first.step = 0;
  return finish_step(kernel, BackwardRingStep(problem, first).finish_params(), at.stream);
}

int32_t add(const void* problem, const baracuda_ring_step* at) {
  const int32_t kernel = as_problem(problem).kernel;
  const BackwardRingStep step(problem, *at);
  GradientSum sums[2];
  step.fill(sums);
  const int32_t status = add_gradients(kernel, as_problem(problem).call.step, sums, at->stream);
  if (status != BARACUDA_OK || at->step < at->world_size || !step.must_finish_at_home()) return status;
  return finish_at_home(kernel, problem, *at);
}

constexpr baracuda_ring_program program = {
    sizeof(baracuda_ring_program), 1, 0, check, is_live, grid, launch, add, settle};

}  // namespace
}  // namespace baracuda

extern "C" const baracuda_ring_program* baracuda_attention_backward_ring_program(void) {
  return &baracuda::program;
}
