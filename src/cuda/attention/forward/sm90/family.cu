// The sm90a family: chooses the instantiation that serves a problem.
#include "attention/forward/family.h"
#include "attention/forward/sm90/variant.h"

namespace baracuda {
namespace {

using sm90::Variant;

Variant select(const StepParams& p) {
  switch (p.head_dim) {
    case 64: return sm90::variant_d64(p);
    case 128: return sm90::variant_d128(p);
    default: return sm90::variant_d256(p);
  }
}

int32_t load(const StepParams& p) { return select(p).load(); }

int32_t step(const StepParams& p, void* stream) {
  return select(p).launch(p, static_cast<cudaStream_t>(stream));
}

int32_t grid(const StepParams& p, StepGrid* grid) { return select(p).grid(p, grid); }

constexpr AttentionFamily family = {load, step, grid};

}  // namespace

const AttentionFamily& sm90a_family() { return family; }

}  // namespace baracuda
