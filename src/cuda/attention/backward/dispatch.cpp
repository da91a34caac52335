// The backward entries of the C ABI: each checks the call, then asks or calls a family.
#include <algorithm>
#include <cstdio>
#include <string>

#include "attention/backward/family.h"
#include "attention/forward/families.h"
#include "common/error.h"

namespace baracuda {
namespace {

constexpr const char* no_backward = "has no backward kernel";
constexpr int64_t scratch_alignment = 16;

// Families with a backward, whether they are in this build or not.
bool has_backward(int32_t kernel) {
  return kernel == BARACUDA_ATTENTION_HOST || kernel == BARACUDA_ATTENTION_SIMT;
}

const BackwardFamily* find_backward(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_ATTENTION_HOST: return &host_backward_family();
#if defined(BARACUDA_WITH_CUDA)
    case BARACUDA_ATTENTION_SIMT: return &simt_backward_family();
#endif
    default: return nullptr;
  }
}

int32_t no_such_kernel(const char* call, int32_t kernel) {
  return fail(BARACUDA_INVALID_ARGUMENT, call,
              "kernel is %d: must be a baracuda_attention_kernel, 0 to 3", kernel);
}

// What a family takes is one rule for both directions.
std::string backward_refusal(int32_t kernel, const FamilyFacts& facts, const StepParams& p) {
  return has_backward(kernel) ? refusal(facts, p) : no_backward;
}

// Finds a family whose backward is in this build and serves the problem.
int32_t find_server(const char* call, int32_t kernel, const StepParams* problem,
                    const BackwardFamily** family) {
  const FamilyFacts* facts = find_facts(kernel);
  if (facts == nullptr) return no_such_kernel(call, kernel);
  if (!has_backward(kernel)) {
    return fail(BARACUDA_UNSUPPORTED, call, "the %s family %s", facts->name, no_backward);
  }
  *family = find_backward(kernel);
  if (*family == nullptr) {
    return fail(BARACUDA_UNAVAILABLE, call, "kernel %s is not in this build", facts->name);
  }
  const int32_t status = check_problem(call, problem);
  return status == BARACUDA_OK ? check_served(call, *facts, *problem) : status;
}

int32_t accumulator_element(int32_t element) {
  return element == BARACUDA_F64 ? BARACUDA_F64 : BARACUDA_F32;
}

int32_t check_params(const char* call, const BackwardParams* params) {
  if (params == nullptr) return fail(BARACUDA_INVALID_ARGUMENT, call, "params is null");
  if (params->struct_size == sizeof(BackwardParams)) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call, "struct_size is %llu: must be %llu",
              static_cast<unsigned long long>(params->struct_size),
              static_cast<unsigned long long>(sizeof(BackwardParams)));
}

// Of a checked problem: the type of lse.
int32_t check_rows(const char* call, const BackwardParams& params) {
  const int32_t wide = accumulator_element(params.step.element);
  if (params.step.lse_element != wide) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "lse_element is %d: must be %d, the accumulator's type", params.step.lse_element,
                wide);
  }
  if (params.reserved == 0) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, call, "%s", "reserved is set: it must be zero");
}

// And that of dk and dv, which the steps write.
int32_t check_types(const char* call, const BackwardParams& params) {
  const StepParams& p = params.step;
  const int32_t wide = accumulator_element(p.element);
  if (params.kv_gradient_element != p.element && params.kv_gradient_element != wide) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "kv_gradient_element is %d: must be element, %d, or the accumulator's type, %d",
                params.kv_gradient_element, p.element, wide);
  }
  return check_rows(call, params);
}

// Addresses: these families ask for no more than their element's alignment.
class Addresses {
 public:
  explicit Addresses(const char* call) : call_(call) {}

  void need(const char* name, const void* pointer, int64_t bytes) {
    if (status_ != BARACUDA_OK) return;
    if (pointer == nullptr) {
      status_ = fail(BARACUDA_INVALID_ARGUMENT, call_, "%s is null: this call needs it", name);
    } else if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) != 0) {
      status_ = fail(BARACUDA_MISALIGNED, call_, "%s is at address %p: must be a multiple of %lld bytes",
                     name, pointer, static_cast<long long>(bytes));
    }
  }
  int32_t status() const { return status_; }

 private:
  const char* const call_;
  int32_t status_ = BARACUDA_OK;
};

int32_t check_prepare_operands(const char* call, const BackwardParams& params) {
  const StepParams& p = params.step;
  const int64_t bytes = baracuda_element_bytes(p.element), wide = accumulator_bytes(p.element);
  Addresses addresses(call);
  addresses.need("y", p.y, bytes);
  addresses.need("dy", params.dy, bytes);
  addresses.need("lse", p.lse, wide);
  if (params.dlse != nullptr) addresses.need("dlse", params.dlse, wide);
  addresses.need("state", p.state, scratch_alignment);
  return addresses.status();
}

int32_t check_step_operands(const char* call, const BackwardParams& params) {
  const StepParams& p = params.step;
  const int64_t bytes = baracuda_element_bytes(p.element);
  Addresses addresses(call);
  if (p.key_len > 0) {
    if (!is_empty(p)) {
      addresses.need("q", p.q, bytes);
      addresses.need("k", p.k, bytes);
      addresses.need("v", p.v, bytes);
      addresses.need("dy", params.dy, bytes);
    }
    const int64_t gradient_bytes = baracuda_element_bytes(params.kv_gradient_element);
    addresses.need("dk", params.dk, gradient_bytes);
    addresses.need("dv", params.dv, gradient_bytes);
  }
  if (!is_empty(p)) {
    if (p.key_len > 0 || !is_single_step(p)) addresses.need("state", p.state, scratch_alignment);
    if ((p.flags & BARACUDA_STEP_LAST) != 0) addresses.need("dq", params.dq, bytes);
  }
  return addresses.status();
}

int32_t check_positions(const char* call, int32_t kernel, const StepParams& p) {
  if (p.device_maps == nullptr) return check_maps(call, p, p.q_map, p.k_map);
  // On a GPU they are out of reach.
  if (kernel != BARACUDA_ATTENTION_HOST) return BARACUDA_OK;
  return check_maps(call, p, p.device_maps[0], p.device_maps[1]);
}

}  // namespace
}  // namespace baracuda

extern "C" uint32_t baracuda_attention_backward_elements(int32_t kernel) {
  return baracuda::has_backward(kernel) ? baracuda::find_facts(kernel)->elements : 0;
}

extern "C" int32_t baracuda_attention_backward_refusal(
    int32_t kernel, const baracuda_attention_step_params* problem, char* reason, int64_t size) {
  using namespace baracuda;
  const FamilyFacts* facts = find_facts(kernel);
  if (facts == nullptr) return no_such_kernel("baracuda_attention_backward_refusal", kernel);
  const std::string why = backward_refusal(kernel, *facts, *problem);
  std::snprintf(reason, static_cast<size_t>(size), "%s", why.c_str());
  return why.empty() ? BARACUDA_OK : BARACUDA_UNSUPPORTED;
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
  const int32_t status = find_server("baracuda_attention_backward_load", kernel, problem, &family);
  return status == BARACUDA_OK ? family->load(*problem) : status;
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
  status = check_prepare_operands(call, *params);
  return status == BARACUDA_OK ? family->prepare(*params, stream) : status;
}

extern "C" int32_t baracuda_attention_backward_step(
    int32_t kernel, const baracuda_attention_backward_params* params, void* stream) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_backward_step";
  const BackwardFamily* family = nullptr;
  int32_t status = check_params(call, params);
  if (status == BARACUDA_OK) status = find_server(call, kernel, &params->step, &family);
  if (status == BARACUDA_OK) status = check_types(call, *params);
  if (status == BARACUDA_OK) status = check_positions(call, kernel, params->step);
  if (status != BARACUDA_OK) return status;
  const StepParams& p = params->step;
  if (p.batch == 0 || (is_empty(p) && p.key_len == 0)) return BARACUDA_OK;
  status = check_step_operands(call, *params);
  return status == BARACUDA_OK ? family->step(*params, stream) : status;
}
