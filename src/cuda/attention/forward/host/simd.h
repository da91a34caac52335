// Vectors of BARACUDA_HOST_VECTOR_BYTES bytes and 2^x on them.
//
// This header and the others of the kernels are compiled once per instruction set. Everything
// lies in a namespace of that name and nothing inline from outside is called (compiler intrinsics
// excepted), so the linker can never pick an AVX copy for an older CPU.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BARACUDA_INLINE inline __attribute__((always_inline))

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

constexpr int kVectorBytes = BARACUDA_HOST_VECTOR_BYTES;

typedef float FloatVector __attribute__((vector_size(BARACUDA_HOST_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(BARACUDA_HOST_VECTOR_BYTES)));
typedef int32_t Int32Vector __attribute__((vector_size(BARACUDA_HOST_VECTOR_BYTES)));
typedef uint32_t Uint32Vector __attribute__((vector_size(BARACUDA_HOST_VECTOR_BYTES)));
typedef int64_t Int64Vector __attribute__((vector_size(BARACUDA_HOST_VECTOR_BYTES)));
typedef uint16_t HalfVector __attribute__((vector_size(BARACUDA_HOST_VECTOR_BYTES / 2)));

template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Vector = FloatVector;
  using Int = Int32Vector;
  using IntScalar = int32_t;
  static constexpr int kWidth = kVectorBytes / 4;
  static constexpr float kInfinity = __builtin_inff();
  // 2^x: 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  static constexpr float kRound = 12582912.0f;
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kBias = 127;
  static constexpr int kTerms = 6;
  static constexpr float kTerm[kTerms] = {0.693147188f,     0.2402265076f,   0.05550357071f,
                                          0.00961808252f,   0.001339088633f, 0.0001545318283f};
};

template <>
struct Simd<double> {
  using Vector = DoubleVector;
  using Int = Int64Vector;
  using IntScalar = int64_t;
  static constexpr int kWidth = kVectorBytes / 8;
  static constexpr double kInfinity = __builtin_inf();
  static constexpr double kRound = 6755399441055744.0;
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kBias = 1023;
  static constexpr int kTerms = 11;
  static constexpr double kTerm[kTerms] = {
      0.6931471805599453,     0.24022650695910097,    0.0555041086648216,
      0.009618129107606854,   0.0013333558146416916,  0.00015403530441794136,
      1.525273382986708e-05,  1.3215442552522291e-06, 1.0178062426976924e-07,
      7.072593027878997e-09,  4.4549643712692967e-10};
};

template <class V, class T>
BARACUDA_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
BARACUDA_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

BARACUDA_INLINE FloatVector splat(float x) { return x - FloatVector{}; }
BARACUDA_INLINE DoubleVector splat(double x) { return x - DoubleVector{}; }

#if defined(__AVX512F__)
BARACUDA_INLINE FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
  return FloatVector(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
BARACUDA_INLINE DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  return DoubleVector(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
}
#elif defined(__FMA__)
BARACUDA_INLINE FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
  return FloatVector(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
BARACUDA_INLINE DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  return DoubleVector(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
}
#else
BARACUDA_INLINE FloatVector fma(FloatVector a, FloatVector b, FloatVector c) { return a * b + c; }
BARACUDA_INLINE DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  return a * b + c;
}
#endif

// The larger of x and so_far; a NaN x leaves so_far as it is.
// (The zero-masking forms: the headers of g++ 12 warn about the plain ones.)
#if defined(__AVX512F__)
BARACUDA_INLINE FloatVector max(FloatVector x, FloatVector so_far) {
  return FloatVector(_mm512_maskz_max_ps(__mmask16(-1), __m512(x), __m512(so_far)));
}
BARACUDA_INLINE DoubleVector max(DoubleVector x, DoubleVector so_far) {
  return DoubleVector(_mm512_maskz_max_pd(__mmask8(-1), __m512d(x), __m512d(so_far)));
}
#elif defined(__AVX2__)
BARACUDA_INLINE FloatVector max(FloatVector x, FloatVector so_far) {
  return FloatVector(_mm256_max_ps(__m256(x), __m256(so_far)));
}
BARACUDA_INLINE DoubleVector max(DoubleVector x, DoubleVector so_far) {
  return DoubleVector(_mm256_max_pd(__m256d(x), __m256d(so_far)));
}
#elif defined(__x86_64__)
BARACUDA_INLINE FloatVector max(FloatVector x, FloatVector so_far) {
  return FloatVector(_mm_max_ps(__m128(x), __m128(so_far)));
}
BARACUDA_INLINE DoubleVector max(DoubleVector x, DoubleVector so_far) {
  return DoubleVector(_mm_max_pd(__m128d(x), __m128d(so_far)));
}
#else
BARACUDA_INLINE FloatVector max(FloatVector x, FloatVector so_far) {
  return x > so_far ? x : so_far;
}
BARACUDA_INLINE DoubleVector max(DoubleVector x, DoubleVector so_far) {
  return x > so_far ? x : so_far;
}
#endif

// 2^x for x <= 0: below 2 ulp, exactly 1 at 0, 0 where the result would be subnormal (and at
// -inf), NaN for NaN. The backward also calls it with x up to kBias + 1;
// the result is infinity from kBias + 0.5 on.
template <class T>
BARACUDA_INLINE typename Simd<T>::Vector exp2_nonpositive(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  using V = typename S::Vector;
  using I = typename S::Int;
  const V lowest = splat(T(-S::kBias));
  x = x < lowest ? lowest : x;  // a NaN stays
  const V rounder = splat(S::kRound);
  const V shifted = x + rounder;
  const V r = x - (shifted - rounder);
  V p = splat(S::kTerm[S::kTerms - 1]);
#pragma GCC unroll 16
  for (int i = S::kTerms - 2; i >= 0; --i) p = fma(p, r, splat(S::kTerm[i]));
  p = fma(p, r, splat(T(1)));
  // At the lowest x the exponent field is 0, so the power is 0.
  const V power = V((I(shifted) + typename S::IntScalar(S::kBias)) << S::kMantissaBits);
  return p * power;
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
