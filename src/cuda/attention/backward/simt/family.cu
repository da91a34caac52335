// The simt family's backward: which instantiation serves a problem.
#include "attention/backward/family.h"
#include "attention/backward/simt/variant.h"

namespace baracuda {
namespace {

using simt::BackwardVariant;

BackwardVariant select(const StepParams& p) {
  return p.element == BARACUDA_F64 ? simt::backward_f64(p.head_dim)
                                   : simt::backward_f32(p.head_dim);
}

int32_t load(const StepParams& problem) { return select(problem).load(); }

// A call of one step keeps dq in registers.
int64_t scratch_bytes(const StepParams& problem) {
  return is_single_step(problem) ? row_statistics_bytes(problem) : state_bytes(problem);
}

int32_t prepare(const BackwardParams& params, void* stream) {
  return select(params.step).prepare(params, static_cast<cudaStream_t>(stream));
}

int32_t step(const BackwardParams& params, void* stream) {
  return select(params.step).step(params, static_cast<cudaStream_t>(stream));
}

constexpr BackwardFamily family = {load, scratch_bytes, prepare, step};

}  // namespace

const BackwardFamily& simt_backward_family() { return family; }

}  // namespace baracuda
