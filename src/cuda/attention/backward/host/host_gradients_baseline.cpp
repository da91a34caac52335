// Host kernels of the backward for any CPU (on x86-64: SSE2).
#include "attention/forward/host/baseline.h"

#include "attention/backward/host/gradient_tile.h"

namespace baracuda {
namespace host {

extern const GradientKernels kBaselineGradients;
constexpr GradientKernels kBaselineGradients = BARACUDA_HOST_ISA::gradient_kernels();

}  // namespace host
}  // namespace baracuda
