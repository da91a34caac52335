// Host kernels for any CPU (on x86-64: SSE2).
#include "attention/forward/host/baseline.h"

#include "attention/forward/host/flash_block.h"

namespace baracuda {
namespace host {

extern const IsaKernels kBaselineKernels;
constexpr IsaKernels kBaselineKernels = BARACUDA_HOST_ISA::kernels("baseline");

}  // namespace host
}  // namespace baracuda
