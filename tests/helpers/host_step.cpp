// The host family's step without the rule of what it serves, for masks that no plan asks for yet:
// compiled from its sources, for the baseline instruction set alone.
#include "attention/forward/family.h"
#include "attention/forward/host/block.h"

const baracuda::host::IsaKernels& baracuda::host::isa_kernels() { return kBaselineKernels; }
int32_t baracuda::host::check_isa_variable(const char*) { return 0; }

extern "C" int32_t host_step(const baracuda_attention_step_params* params) {
  return baracuda::host_family().step(*params, nullptr);
}
