// The simt family: which instantiation serves a problem.
#include "attention/forward/family.h"
#include "attention/forward/simt/variant.h"

namespace baracuda {
namespace {

using simt::Variant;

Variant select(const StepParams& p) {
  switch (p.element) {
    case BARACUDA_F16: return simt::variant_f16(p.head_dim);
    case BARACUDA_BF16: return simt::variant_bf16(p.head_dim);
    case BARACUDA_F32: return simt::variant_f32(p.head_dim);
    default: return simt::variant_f64(p.head_dim);
  }
}

int32_t load(const StepParams& p) { return select(p).load(); }

int32_t step(const StepParams& p, void* stream) {
  return select(p).launch(p, static_cast<cudaStream_t>(stream));
}

int32_t grid(const StepParams& p, StepGrid* grid) { return select(p).grid(p, grid); }

constexpr AttentionFamily family = {load, step, grid};

}  // namespace

const AttentionFamily& simt_family() { return family; }

}  // namespace baracuda
