// Host kernels of the backward for AVX2, FMA and F16C.
#if defined(__x86_64__)

#include "attention/forward/host/avx2.h"

#include "attention/backward/host/gradient_tile.h"

namespace baracuda {
namespace host {

extern const GradientKernels kAvx2Gradients;
constexpr GradientKernels kAvx2Gradients = BARACUDA_HOST_ISA::gradient_kernels();

}  // namespace host
}  // namespace baracuda

#endif  // __x86_64__
