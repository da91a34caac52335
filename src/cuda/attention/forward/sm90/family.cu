// The sm90a family: which instantiation serves a problem.
#include "attention/forward/family.h"
#include "ring/head_start.h"
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

int32_t load(const StepParams& p) {
  const int32_t status = select(p).load();
  return status == BARACUDA_OK ? load_head_start() : status;
}

int32_t step(const StepParams& p, void* stream) {
  return select(p).launch(p, static_cast<cudaStream_t>(stream));
}

constexpr AttentionFamily family = {load, step};

}  // namespace

const AttentionFamily& sm90a_family() { return family; }

}  // namespace baracuda
