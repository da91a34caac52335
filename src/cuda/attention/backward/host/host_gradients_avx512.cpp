// Host kernels of the backward for AVX-512 (F, BW, VL, DQ).
#if defined(__x86_64__)

#include "attention/forward/host/avx512.h"

#include "attention/backward/host/gradient_tile.h"

namespace baracuda {
namespace host {

extern const GradientKernels kAvx512Gradients;
constexpr GradientKernels kAvx512Gradients = BARACUDA_HOST_ISA::gradient_kernels();

}  // namespace host
}  // namespace baracuda

#endif  // __x86_64__
