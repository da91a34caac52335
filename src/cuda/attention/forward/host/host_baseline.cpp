// Host kernels for any CPU (on x86-64: SSE2).
#define BARACUDA_HOST_ISA baseline
#define BARACUDA_HOST_VECTOR_BYTES 16

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {
// Register tiles of the two products; 16 registers, or 32 with AVX-512, bound them.
constexpr int kScoreKeys = 4, kScoreVectors = 2, kValueRows = 4, kValueVectors = 2;
}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda

#include "attention/forward/host/flash_block.h"

namespace baracuda {
namespace host {

extern const IsaKernels kBaselineKernels;
constexpr IsaKernels kBaselineKernels = BARACUDA_HOST_ISA::kernels("baseline");

}  // namespace host
}  // namespace baracuda
