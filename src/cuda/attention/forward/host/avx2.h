// Settings of the host kernels for AVX2, FMA and F16C. Each of their files includes this first.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "the avx2 kernels need -mavx2 -mfma -mf16c"
#endif

#define BARACUDA_HOST_ISA avx2
#define BARACUDA_HOST_VECTOR_BYTES 32

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {
// Register tiles of the two products. Their size is bound by 16 registers, with AVX-512 by 32.
constexpr int kScoreKeys = 6, kScoreVectors = 2, kValueRows = 4, kValueVectors = 3;
}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
