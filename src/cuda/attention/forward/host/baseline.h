// Settings of the host kernels for any CPU (on x86-64: SSE2). Each of their files includes this
// first.
#pragma once

#define BARACUDA_HOST_ISA baseline
#define BARACUDA_HOST_VECTOR_BYTES 16

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {
// Register tiles of the two products. Their size is bound by 16 registers, with AVX-512 by 32.
constexpr int kScoreKeys = 4, kScoreVectors = 2, kValueRows = 4, kValueVectors = 2;
}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
