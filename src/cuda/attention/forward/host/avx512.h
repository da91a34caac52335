// Settings of the host kernels for AVX-512 (F, BW, VL, DQ). Each of their files includes this
// first.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "the avx512 kernels need -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
#endif

#define BARACUDA_HOST_ISA avx512
#define BARACUDA_HOST_VECTOR_BYTES 64

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {
// Register tiles of the two products. Their size is bound by 16 registers, with AVX-512 by 32.
constexpr int kScoreKeys = 6, kScoreVectors = 4, kValueRows = 8, kValueVectors = 3;
}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
