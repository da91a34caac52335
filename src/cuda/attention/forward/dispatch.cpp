// The attention entries of the C ABI: each checks the call, then asks or calls a family.
#include "attention/forward/families.h"
#include "attention/forward/family.h"
#include "attention/question.h"
#include "common/error.h"

namespace baracuda {
namespace {

int32_t no_such_kernel(const char* call, int32_t kernel) {
  return fail(BARACUDA_INVALID_ARGUMENT, call,
              "kernel: got %d, must be a baracuda_attention_kernel, 0 to 3", kernel);
}

// Finds a family that is in this build and serves the problem; a failure of `call` if there is
// none.
int32_t find_server(const char* call, int32_t kernel, const StepParams* params,
                    const AttentionFamily** family, const FamilyFacts** facts) {
  *facts = find_facts(kernel);
  if (*facts == nullptr) return no_such_kernel(call, kernel);
  *family = find_family(kernel);
  if (*family == nullptr) {
    return fail(BARACUDA_UNAVAILABLE, call, "kernel: got %s, must be one of this build",
                (*facts)->name);
  }
  const int32_t status = check_problem(call, params);
  return status == BARACUDA_OK ? check_served(call, **facts, *params) : status;
}

int32_t check_positions(const char* call, int32_t kernel, const StepParams& p) {
  if (p.device_maps == nullptr) return check_maps(call, p, p.q_map, p.k_map);
  // The host cannot read maps in GPU memory.
  if (kernel != BARACUDA_ATTENTION_HOST) return BARACUDA_OK;
  return check_maps(call, p, p.device_maps[0], p.device_maps[1]);
}

}  // namespace

int32_t attention_step_grid(int32_t kernel, const StepParams& params, StepGrid* grid) {
  const AttentionFamily* family = nullptr;
  const FamilyFacts* facts = nullptr;
  *grid = {0, 0};
  const int32_t status = find_server("baracuda_attention_step", kernel, &params, &family, &facts);
  if (status != BARACUDA_OK || is_empty(params)) return status;
  return family->grid(params, grid);
}

}  // namespace baracuda

extern "C" int32_t baracuda_attention_available(int32_t kernel) {
  return baracuda::find_family(kernel) != nullptr ? 1 : 0;
}

extern "C" int32_t baracuda_attention_family_info(int32_t kernel, baracuda_attention_family* info) {
  using namespace baracuda;
  const FamilyFacts* facts = find_facts(kernel);
  constexpr const char* call = "baracuda_attention_family_info";
  if (facts == nullptr) return no_such_kernel(call, kernel);
  if (info == nullptr)
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s", "info: got NULL, must be given");
  *info = {facts->name,
           facts->min_compute_capability,
           facts->max_compute_capability,
           facts->elements,
           facts->tensor_cores ? 1 : 0,
           facts->vector_bytes,
           facts->max_stride_bytes};
  return BARACUDA_OK;
}

extern "C" int32_t baracuda_attention_refusal(int32_t kernel,
                                              const baracuda_attention_step_params* params,
                                              char* reason, int64_t size) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_refusal";
  const FamilyFacts* facts = find_facts(kernel);
  if (facts == nullptr) return no_such_kernel(call, kernel);
  const int32_t status = check_question(call, params, reason, size);
  return status == BARACUDA_OK ? answer(call, refusal(*facts, *params), *params, reason, size)
                               : status;
}

extern "C" int64_t baracuda_attention_state_bytes(int32_t kernel,
                                                  const baracuda_attention_step_params* params) {
  using namespace baracuda;
  const AttentionFamily* family = nullptr;
  const FamilyFacts* facts = nullptr;
  if (find_server("baracuda_attention_state_bytes", kernel, params, &family, &facts) !=
      BARACUDA_OK) {
    return -1;
  }
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  return (params->flags & whole) == whole ? 0 : state_bytes(*params);
}

extern "C" int32_t baracuda_attention_load(int32_t kernel,
                                           const baracuda_attention_step_params* params) {
  using namespace baracuda;
  const AttentionFamily* family = nullptr;
  const FamilyFacts* facts = nullptr;
  const int32_t status = find_server("baracuda_attention_load", kernel, params, &family, &facts);
  return status == BARACUDA_OK ? family->load(*params) : status;
}

extern "C" int32_t baracuda_attention_step(int32_t kernel,
                                           const baracuda_attention_step_params* params,
                                           void* stream) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_step";
  const AttentionFamily* family = nullptr;
  const FamilyFacts* facts = nullptr;
  int32_t status = find_server(call, kernel, params, &family, &facts);
  if (status == BARACUDA_OK) status = check_positions(call, kernel, *params);
  if (status != BARACUDA_OK || is_empty(*params)) return status;
  status = check_operands(call, *facts, *params);
  return status == BARACUDA_OK ? family->step(*params, stream) : status;
}
