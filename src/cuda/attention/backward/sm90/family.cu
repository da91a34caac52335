// The sm90a family's backward: which instantiation serves a problem.
#include "attention/backward/family.h"
#include "attention/backward/sm90/variant.h"

namespace baracuda {
namespace {

BackwardFamily select(const StepParams& p) {
  return p.head_dim == 64 ? sm90::backward::variant_d64(p) : sm90::backward::variant_d128(p);
}

int32_t load(const StepParams& problem) { return select(problem).load(problem); }

int64_t scratch_bytes(const StepParams& problem) { return select(problem).scratch_bytes(problem); }

int32_t prepare(const BackwardParams& params, void* stream) {
  return select(params.step).prepare(params, stream);
}

int32_t step(const BackwardParams& params, void* stream) {
  return select(params.step).step(params, stream);
}

int32_t grid(const BackwardParams& params, StepGrid* grid) {
  return select(params.step).grid(params, grid);
}

constexpr BackwardFamily family = {load, scratch_bytes, prepare, step, grid};

}  // namespace

const BackwardFamily& sm90a_backward_family() { return family; }

}  // namespace baracuda
