// Host kernels for AVX-512 (F, BW, VL, DQ).
#if defined(__x86_64__)

#include "attention/forward/host/avx512.h"

#include "attention/forward/host/flash_block.h"

namespace baracuda {
namespace host {

extern const IsaKernels kAvx512Kernels;
constexpr IsaKernels kAvx512Kernels = BARACUDA_HOST_ISA::kernels("avx512");

}  // namespace host
}  // namespace baracuda

#endif  // __x86_64__
