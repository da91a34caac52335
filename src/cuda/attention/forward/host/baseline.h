// What host kernels for any CPU (on x86-64: SSE2) are compiled with: first in each file of theirs.
#pragma once

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
