// Host kernels for AVX2, FMA and F16C.
#if defined(__x86_64__)

#include "attention/forward/host/avx2.h"

#include "attention/forward/host/flash_block.h"

namespace baracuda {
namespace host {

extern const IsaKernels kAvx2Kernels;
constexpr IsaKernels kAvx2Kernels = BARACUDA_HOST_ISA::kernels("avx2");

}  // namespace host
}  // namespace baracuda

#endif  // __x86_64__
