// The backward's program for the ring loop.
#include <cstdint>
#include <type_traits>

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
constexpr int32_t kGradients = 1;  // the payload of dk and dv, of the first part
constexpr int64_t kScratchAlignment = 256;

const Problem& as_problem(const void* problem) { return *static_cast<const Problem*>(problem); }

int32_t accumulator_of(const StepParams& p) {
  return p.element == BARACUDA_F64 ? BARACUDA_F64 : BARACUDA_F32;
}

// The K/V heads of a part, and the query heads that share them.
struct PartHeads {
  PartHeads(const StepParams& whole, int32_t first_kv_heads, int32_t part) {
    const int64_t group = whole.kv_heads > 0 ? whole.heads / whole.kv_heads : 0;
    if (first_kv_heads == 0) {
      kv_count = whole.kv_heads;
    } else if (part == 0) {
      kv_count = first_kv_heads;
    } else {
      kv_begin = first_kv_heads;
      kv_count = whole.kv_heads - first_kv_heads;
    }
    begin = kv_begin * group;
    count = first_kv_heads == 0 ? whole.heads : kv_count * group;
  }

  void put_counts(StepParams* step) const {
    step->heads = count;
    step->kv_heads = kv_count;
  }

  int64_t kv_begin = 0, kv_count = 0;
  int64_t begin = 0, count = 0;
};

// Bytes of the scratch of one part, so that another may follow; -1 is a recorded failure.
int64_t part_scratch_bytes(int32_t kernel, const StepParams& whole, int32_t first_kv_heads,
                           int32_t part) {
  StepParams step = whole;
  step.flags &= ~(uint32_t{BARACUDA_STEP_FIRST} | BARACUDA_STEP_LAST);
  PartHeads(whole, first_kv_heads, part).put_counts(&step);
  const int64_t bytes = baracuda_attention_backward_scratch_bytes(kernel, &step);
  return bytes < 0 ? bytes : (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

template <typename T>
void move(T** pointer, int64_t elements, int64_t bytes_each) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  if (*pointer != nullptr) *pointer = static_cast<Byte*>(*pointer) + elements * bytes_each;
}

class BackwardRingStep {
 public:
  BackwardRingStep(const void* problem, const baracuda_ring_step& at)
      : problem_(as_problem(problem)),
        at_(at),
        live_(problem_.call.step, problem_.layout, at),
        heads_(problem_.call.step, problem_.first_kv_heads, at.part) {}

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
    take_heads(&params);
    if (at_.world_size == 1) return params;
    params.dk = at_.chunk[gradients()][0];
    params.dv = at_.chunk[gradients()][1];
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
    BackwardParams call = problem_.call;
    take_heads(&call);
    const bool is_home = at_.step == at_.world_size;
    for (int32_t i = 0; i < 2; ++i) {
      void* const received = at_.received[gradients()][i];
      sums[i] = {received, at_.chunk[gradients()][i], received, dense_key_strides(call.step),
                 accumulator_of(call.step)};
      if (!is_home) continue;
      sums[i].out = i == 0 ? call.dk : call.dv;
      sums[i].strides = i == 0 ? call.dk_strides : call.dv_strides;
      sums[i].element = call.kv_gradient_element;
    }
  }

  // The problem whose sums are added: shapes alone.
  StepParams shapes() const {
    StepParams step = problem_.call.step;
    heads_.put_counts(&step);
    return step;
  }

 private:
  int32_t gradients() const { return kGradients + at_.part; }

  // Lets the parameters of the whole call point to the heads of this part.
  void take_heads(BackwardParams* params) const {
    if (problem_.first_kv_heads == 0) return;
    StepParams& step = params->step;
    const int64_t wide = accumulator_bytes(step.element);
    const int64_t bytes = baracuda_element_bytes(step.element);
    move(&step.q, heads_.begin * step.q_strides.head, bytes);
    move(&step.y, heads_.begin * step.y_strides.head, bytes);
    move(&step.lse, heads_.begin * params->lse_strides.head, wide);
    move(&step.k, heads_.kv_begin * step.k_strides.head, bytes);
    move(&step.v, heads_.kv_begin * step.v_strides.head, bytes);
    move(&params->dy, heads_.begin * params->dy_strides.head, bytes);
    move(&params->dlse, heads_.begin * params->dlse_strides.head, wide);
    move(&params->dq, heads_.begin * params->dq_strides.head, bytes);
    const int64_t of_key_gradients = baracuda_element_bytes(params->kv_gradient_element);
    move(&params->dk, heads_.kv_begin * params->dk_strides.head, of_key_gradients);
    move(&params->dv, heads_.kv_begin * params->dv_strides.head, of_key_gradients);
    if (at_.part > 0) {
      move(&step.state, part_scratch_bytes(problem_.kernel, problem_.call.step,
                                           problem_.first_kv_heads, 0), 1);
    }
    heads_.put_counts(&step);
  }

  const Problem& problem_;
  const baracuda_ring_step& at_;
  const LiveSteps live_;
  const PartHeads heads_;
};

template <int32_t parts>
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
  const int64_t kv_heads = problem->call.step.kv_heads;
  const int32_t first = problem->first_kv_heads;
  if (parts == 1 ? first != 0 : first < 1 || first >= kv_heads) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "first_kv_heads: got %d, must be 0 in one part, and in two from 1 to less than "
                "kv_heads %lld",
                first, static_cast<long long>(kv_heads));
  }
  return check_ring_step(kCall, problem->call.step, problem->layout, at->world_size);
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
template <int32_t parts>
int32_t settle(const void* problem, const baracuda_ring_step* at) {
  for (int32_t part = 0; part < parts; ++part) {
    baracuda_ring_step of_part = *at;
    of_part.part = part;
    // Only the last part has its dk and dv at hand. They must be given, and are not written.
    for (int32_t i = 0; i < 2; ++i) {
      of_part.chunk[kGradients + part][i] = at->chunk[kGradients + at->part][i];
    }
    const BackwardRingStep step(problem, of_part);
    const int32_t status =
        finish_step(as_problem(problem).kernel,
                    step.must_spare_dq() ? step.finish_params() : step.params(), at->stream);
    if (status != BARACUDA_OK) return status;
  }
  return BARACUDA_OK;
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
  const int32_t status = add_gradients(kernel, step.shapes(), sums, at->stream);
  if (status != BARACUDA_OK || at->step < at->world_size || !step.must_finish_at_home()) return status;
  return finish_at_home(kernel, problem, *at);
}

template <int32_t parts>
constexpr baracuda_ring_program program = {
    sizeof(baracuda_ring_program), parts, 0, check<parts>, is_live, grid, launch, add,
    settle<parts>};

}  // namespace
}  // namespace baracuda

extern "C" const baracuda_ring_program* baracuda_attention_backward_ring_program(int32_t parts) {
  if (parts == 1) return &baracuda::program<1>;
  return parts == 2 ? &baracuda::program<2> : nullptr;
}

extern "C" int64_t baracuda_attention_backward_ring_scratch_bytes(
    int32_t kernel, const baracuda_attention_step_params* problem, int32_t first_kv_heads) {
  if (first_kv_heads == 0) return baracuda_attention_backward_scratch_bytes(kernel, problem);
  const int64_t first = baracuda::part_scratch_bytes(kernel, *problem, first_kv_heads, 0);
  const int64_t second = baracuda::part_scratch_bytes(kernel, *problem, first_kv_heads, 1);
  return first < 0 || second < 0 ? -1 : first + second;
}
