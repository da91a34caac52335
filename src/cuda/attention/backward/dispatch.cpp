// The backward entries of the C ABI: each checks the call, then asks or calls a family.
#include <algorithm>
#include <string>

#include "attention/backward/checks.h"
#include "attention/backward/facts.h"
#include "attention/backward/family.h"
#include "attention/question.h"
#include "attention/reach.h"
#include "common/check_struct.h"
#include "common/error.h"

namespace baracuda {
namespace {

constexpr int64_t scratch_alignment = 16;

const BackwardFamily* find_backward(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_ATTENTION_HOST: return &host_backward_family();
#if defined(BARACUDA_WITH_CUDA)
    case BARACUDA_ATTENTION_SIMT: return &simt_backward_family();
    case BARACUDA_ATTENTION_SM80: return &sm80_backward_family();
    case BARACUDA_ATTENTION_SM90A: return &sm90a_backward_family();
    case BARACUDA_BACKWARD_SM80_ORDERED: return &sm80_ordered_backward_family();
    case BARACUDA_BACKWARD_SM90A_ORDERED: return &sm90a_ordered_backward_family();
#endif
    default: return nullptr;
  }
}

const GradientAdder& adder_of([[maybe_unused]] int32_t kernel) {
#if defined(BARACUDA_WITH_CUDA)
  if (kernel != BARACUDA_ATTENTION_HOST) return gpu_gradient_adder();
#endif
  return host_gradient_adder();
}

int32_t no_such_kernel(const char* call, int32_t kernel) {
  return fail(BARACUDA_INVALID_ARGUMENT, call,
              "kernel: got %d, must be a baracuda_attention_kernel, 0 to 3, or a "
              "baracuda_attention_backward_kernel, %d or %d",
              kernel, BARACUDA_BACKWARD_SM80_ORDERED, BARACUDA_BACKWARD_SM90A_ORDERED);
}

// Finds a family whose backward is in this build and serves the problem.
int32_t find_server(const char* call, int32_t kernel, const StepParams* problem,
                    const BackwardFamily** family) {
  const FamilyFacts* facts = find_facts(backward_family(kernel));
  if (facts == nullptr) return no_such_kernel(call, kernel);
  if (find_backward_facts(kernel) == nullptr)
    return fail(BARACUDA_UNSUPPORTED, call, "kernel: got %s, must be one with a backward",
                facts->name);
  *family = find_backward(kernel);
  if (*family == nullptr)
    return fail(BARACUDA_UNAVAILABLE, call, "kernel: got %s, must be one of this build",
                facts->name);
  const int32_t status = check_problem(call, problem);
  if (status != BARACUDA_OK) return status;
  const std::string reason = backward_refusal(kernel, *problem);
  if (reason.empty()) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, call, "the %s kernel: %s", facts->name, reason.c_str());
}

int32_t accumulator_element(int32_t element) {
  return element == BARACUDA_F64 ? BARACUDA_F64 : BARACUDA_F32;
}

int32_t check_params(const char* call, const BackwardParams* params) {
  return check_struct(call, "params", params);
}

// Checks the type of lse, of a problem that is checked already.
int32_t check_rows(const char* call, const BackwardParams& params) {
  const int32_t wide = accumulator_element(params.step.element);
  if (params.step.lse_element != wide) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "lse_element: got %d, must be %d, the accumulator's type", params.step.lse_element,
                wide);
  }
  if (params.reserved == 0) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, call, "%s", "reserved: got a value, must be 0");
}

// Checks also the type of dk and dv, which the steps write.
int32_t check_types(const char* call, const BackwardParams& params) {
  const StepParams& p = params.step;
  const int32_t wide = accumulator_element(p.element);
  if (params.kv_gradient_element != p.element && params.kv_gradient_element != wide) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "kv_gradient_element: got %d, must be element, %d, or the accumulator's type, %d",
                params.kv_gradient_element, p.element, wide);
  }
  return check_rows(call, params);
}

// The operands of one call, each with the address and strides that its family needs.
class Operands {
 public:
  Operands(const char* call, int32_t kernel, const StepParams& p)
      : call_(call), facts_(*find_backward_facts(kernel)), p_(p) {}

  void rows(const char* name, const void* pointer, const baracuda_strides& strides, bool input) {
    tensor(name, pointer, strides, p_.heads, p_.query_len, p_.element, input);
  }
  void keys(const char* name, const void* pointer, const baracuda_strides& strides,
            int32_t element, bool input) {
    tensor(name, pointer, strides, p_.kv_heads, p_.key_len, element, input);
  }
  void key_gradients(const BackwardParams& params) {
    keys("dk", params.dk, params.dk_strides, params.kv_gradient_element, false);
    keys("dv", params.dv, params.dv_strides, params.kv_gradient_element, false);
  }
  // One number for each row, of the accumulator's type.
  void numbers(const char* name, const void* pointer, const baracuda_strides& strides) {
    const int64_t bytes = accumulator_bytes(p_.element);
    address(name, pointer, bytes);
    if (status_ == BARACUDA_OK)
      status_ = check_reach(call_, name, strides, p_, p_.heads, p_.query_len, 1, bytes);
  }
  void address(const char* name, const void* pointer, int64_t bytes) {
    if (status_ != BARACUDA_OK) return;
    if (pointer == nullptr) {
      status_ = fail(BARACUDA_INVALID_ARGUMENT, call_, "%s: got NULL, must be given to this call",
                     name);
    } else if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) != 0) {
      status_ = fail(BARACUDA_MISALIGNED, call_,
                     "%s: got address %p, must be a multiple of %lld bytes",
                     name, pointer, static_cast<long long>(bytes));
    }
  }
  int32_t status() const { return status_; }

 private:
  void tensor(const char* name, const void* pointer, const baracuda_strides& strides,
              int64_t heads, int64_t length, int32_t element, bool input) {
    const int64_t bytes = baracuda_element_bytes(element);
    address(name, pointer, std::max<int64_t>(facts_.vector_bytes, bytes));
    if (status_ == BARACUDA_OK)
      status_ = check_operand(call_, facts_, name, pointer, strides, p_, heads, length, element,
                              input);
  }

  const char* const call_;
  const FamilyFacts& facts_;
  const StepParams& p_;
  int32_t status_ = BARACUDA_OK;
};

int32_t check_prepare_operands(const char* call, int32_t kernel, const BackwardParams& params) {
  const StepParams& p = params.step;
  Operands operands(call, kernel, p);
  operands.rows("y", p.y, p.y_strides, true);
  operands.rows("dy", params.dy, params.dy_strides, true);
  operands.numbers("lse", p.lse, params.lse_strides);
  if (params.dlse != nullptr) operands.numbers("dlse", params.dlse, params.dlse_strides);
  operands.address("state", p.state, scratch_alignment);
  return operands.status();
}

int32_t check_step_operands(const char* call, int32_t kernel, const BackwardParams& params) {
  const StepParams& p = params.step;
  Operands operands(call, kernel, p);
  if (p.key_len > 0) {
    if (!is_empty(p)) {
      operands.rows("q", p.q, p.q_strides, true);
      operands.keys("k", p.k, p.k_strides, p.element, true);
      operands.keys("v", p.v, p.v_strides, p.element, true);
      operands.rows("dy", params.dy, params.dy_strides, true);
    }
    operands.key_gradients(params);
  }
  if (!is_empty(p)) {
    if (p.key_len > 0 || !is_single_step(p)) operands.address("state", p.state, scratch_alignment);
    if ((p.flags & BARACUDA_STEP_LAST) != 0)
      operands.rows("dq", params.dq, params.dq_strides, false);
  }
  return operands.status();
}

int32_t check_positions(const char* call, int32_t kernel, const StepParams& p) {
  if (p.device_maps == nullptr) return check_maps(call, p, p.q_map, p.k_map);
  // The host cannot read maps in GPU memory.
  if (kernel != BARACUDA_ATTENTION_HOST) return BARACUDA_OK;
  return check_maps(call, p, p.device_maps[0], p.device_maps[1]);
}

// Finds the family of a step and checks its parameters. Null if the step has nothing to do.
int32_t find_stepper(int32_t kernel, const BackwardParams* params, const BackwardFamily** family) {
  constexpr const char* call = "baracuda_attention_backward_step";
  const BackwardFamily* found = nullptr;
  int32_t status = check_params(call, params);
  if (status == BARACUDA_OK) status = find_server(call, kernel, &params->step, &found);
  if (status == BARACUDA_OK) status = check_types(call, *params);
  if (status == BARACUDA_OK) status = check_positions(call, kernel, params->step);
  if (status != BARACUDA_OK) return status;
  const StepParams& p = params->step;
  if (p.batch == 0 || (is_empty(p) && p.key_len == 0)) return BARACUDA_OK;
  status = check_step_operands(call, kernel, *params);
  if (status == BARACUDA_OK) *family = found;
  return status;
}

}  // namespace

int32_t check_key_gradients(const char* call, int32_t kernel, const BackwardParams& params) {
  const BackwardFamily* family = nullptr;
  int32_t status = find_server(call, kernel, &params.step, &family);
  if (status == BARACUDA_OK) status = check_types(call, params);
  const StepParams& p = params.step;
  if (status != BARACUDA_OK || p.batch == 0 || p.key_len == 0) return status;
  Operands operands(call, kernel, p);
  operands.key_gradients(params);
  return operands.status();
}

int32_t backward_step_grid(int32_t kernel, const BackwardParams& params, StepGrid* grid) {
  const BackwardFamily* family = nullptr;
  *grid = {0, 0};
  const int32_t status =
      find_server("baracuda_attention_backward_step", kernel, &params.step, &family);
  if (status != BARACUDA_OK || is_empty(params.step)) return status;
  return family->grid == nullptr ? BARACUDA_OK : family->grid(params, grid);
}

int32_t step_without_finish(int32_t kernel, const BackwardParams& params, void* stream) {
  const BackwardFamily* family = nullptr;
  const int32_t status = find_stepper(kernel, &params, &family);
  return status == BARACUDA_OK && family != nullptr ? family->step(params, stream) : status;
}

int32_t finish_step(int32_t kernel, const BackwardParams& params, void* stream) {
  if ((params.step.flags & BARACUDA_STEP_LAST) == 0) return BARACUDA_OK;
  const BackwardFamily* family = nullptr;
  const int32_t status = find_stepper(kernel, &params, &family);
  if (status != BARACUDA_OK || family == nullptr || family->finish == nullptr) return status;
  return family->finish(params, stream);
}

int32_t add_gradients(int32_t kernel, const StepParams& problem, const GradientSum (&sums)[2],
                      void* stream) {
  const BackwardFamily* family = nullptr;
  const int32_t status =
      find_server("baracuda_attention_backward_step", kernel, &problem, &family);
  if (status != BARACUDA_OK || problem.batch == 0 || problem.key_len == 0) return status;
  return adder_of(kernel).add(problem, sums, stream);
}

}  // namespace baracuda

extern "C" int32_t baracuda_attention_backward_finishes(int32_t kernel) {
  const baracuda::BackwardFamily* family = baracuda::find_backward(kernel);
  return family == nullptr ? -1 : family->finish != nullptr ? 1 : 0;
}

extern "C" uint32_t baracuda_attention_backward_elements(int32_t kernel) {
  const baracuda::FamilyFacts* facts = baracuda::find_backward_facts(kernel);
  return facts == nullptr ? 0 : facts->elements;
}

extern "C" int32_t baracuda_attention_backward_second(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_ATTENTION_SM80: return BARACUDA_BACKWARD_SM80_ORDERED;
    case BARACUDA_ATTENTION_SM90A: return BARACUDA_BACKWARD_SM90A_ORDERED;
    default: return -1;
  }
}

extern "C" int32_t baracuda_attention_backward_ordered(int32_t kernel) {
  return baracuda::is_backward_ordered(kernel) ? 1 : 0;
}

extern "C" int32_t baracuda_attention_backward_refusal(
    int32_t kernel, const baracuda_attention_step_params* problem, char* reason, int64_t size) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_backward_refusal";
  if (find_facts(backward_family(kernel)) == nullptr) return no_such_kernel(call, kernel);
  const int32_t status = check_question(call, problem, reason, size);
  return status == BARACUDA_OK
             ? answer(call, backward_refusal(kernel, *problem), *problem, reason, size)
             : status;
}

extern "C" int64_t baracuda_attention_backward_scratch_bytes(
    int32_t kernel, const baracuda_attention_step_params* problem) {
  using namespace baracuda;
  const BackwardFamily* family = nullptr;
  const char* call = "baracuda_attention_backward_scratch_bytes";
  if (find_server(call, kernel, problem, &family) != BARACUDA_OK) return -1;
  return is_empty(*problem) ? 0 : family->scratch_bytes(*problem);
}

extern "C" int32_t baracuda_attention_backward_load(int32_t kernel,
                                                    const baracuda_attention_step_params* problem) {
  using namespace baracuda;
  const BackwardFamily* family = nullptr;
  int32_t status = find_server("baracuda_attention_backward_load", kernel, problem, &family);
  if (status == BARACUDA_OK) status = family->load(*problem);
  return status == BARACUDA_OK ? adder_of(kernel).load() : status;
}

extern "C" int32_t baracuda_attention_backward_prepare(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_backward_prepare";
  const BackwardFamily* family = nullptr;
  int32_t status = check_params(call, params);
  if (status == BARACUDA_OK) status = find_server(call, kernel, &params->step, &family);
  if (status == BARACUDA_OK) status = check_rows(call, *params);
  if (status != BARACUDA_OK || is_empty(params->step)) return status;
  status = check_prepare_operands(call, kernel, *params);
  return status == BARACUDA_OK ? family->prepare(*params, stream) : status;
}

extern "C" int32_t baracuda_attention_backward_step(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream) {
  using namespace baracuda;
  const BackwardFamily* family = nullptr;
  int32_t status = find_stepper(kernel, params, &family);
  if (status != BARACUDA_OK || family == nullptr) return status;
  status = family->step(*params, stream);
  const bool finishes =
      (params->step.flags & BARACUDA_STEP_LAST) != 0 && family->finish != nullptr;
  return status == BARACUDA_OK && finishes ? family->finish(*params, stream) : status;
}
