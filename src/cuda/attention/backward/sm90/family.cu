// The sm90a family's backward: which instantiation serves a problem.
#include "attention/backward/family.h"
#include "attention/backward/sm90/variant.h"

namespace baracuda {
namespace {

using namespace sm90::backward;

template <bool Ordered>
BackwardFamily select(const StepParams& p) {
  if (Ordered) return p.head_dim == 64 ? variant_d64_ordered(p) : variant_d128_ordered(p);
  if (p.head_dim == 64) return variant_d64(p);
  return p.head_dim == 128 ? variant_d128(p) : variant_d256(p);
}

template <bool Ordered>
constexpr BackwardFamily family = {
    [](const StepParams& problem) { return select<Ordered>(problem).load(problem); },
    [](const StepParams& problem) { return select<Ordered>(problem).scratch_bytes(problem); },
    [](const BackwardParams& params, void* stream) {
      return select<Ordered>(params.step).prepare(params, stream);
    },
    [](const BackwardParams& params, void* stream) {
      return select<Ordered>(params.step).step(params, stream);
    },
    [](const BackwardParams& params, StepGrid* grid) {
      return select<Ordered>(params.step).grid(params, grid);
    },
    [](const BackwardParams& params, void* stream) {
      return select<Ordered>(params.step).finish(params, stream);
    }};

}  // namespace

const BackwardFamily& sm90a_backward_family() { return family<false>; }

const BackwardFamily& sm90a_ordered_backward_family() { return family<true>; }

}  // namespace baracuda
