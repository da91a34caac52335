// Rows of f16, bf16, f32 and f64 elements to and from the type of the math.
#pragma once

#include <stdint.h>

#include "attention/forward/host/simd.h"

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which an element is computed.
template <class E>
struct MathOf {
  using Type = float;
};
template <>
struct MathOf<double> {
  using Type = double;
};

BARACUDA_INLINE FloatVector load_elements(const float* p) { return load<FloatVector>(p); }
BARACUDA_INLINE DoubleVector load_elements(const double* p) { return load<DoubleVector>(p); }
BARACUDA_INLINE void store_elements(float* p, FloatVector v) { store(p, v); }
BARACUDA_INLINE void store_elements(double* p, DoubleVector v) { store(p, v); }

BARACUDA_INLINE Uint32Vector widen(const void* p) {
  return __builtin_convertvector(load<HalfVector>(static_cast<const uint16_t*>(p)), Uint32Vector);
}

BARACUDA_INLINE void store_narrow(void* p, Uint32Vector v) {
  store(static_cast<uint16_t*>(p), __builtin_convertvector(v, HalfVector));
}

BARACUDA_INLINE Uint32Vector select(Int32Vector mask, Uint32Vector a, Uint32Vector b) {
  return (a & Uint32Vector(mask)) | (b & ~Uint32Vector(mask));
}

BARACUDA_INLINE FloatVector load_elements(const BFloat16* p) {
  return FloatVector(widen(p) << 16);
}

BARACUDA_INLINE void store_elements(BFloat16* p, FloatVector v) {
  const Uint32Vector bits = Uint32Vector(v);
  const Uint32Vector nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could carry a NaN's mantissa away.
  store_narrow(p, select(v == v, nearest_even, (bits >> 16) | 0x40u));
}

#if defined(__AVX512F__)
BARACUDA_INLINE FloatVector load_elements(const Half* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return FloatVector(_mm512_maskz_cvtph_ps(__mmask16(-1), half));
}
BARACUDA_INLINE void store_elements(Half* p, FloatVector v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(__mmask16(-1), __m512(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
BARACUDA_INLINE FloatVector load_elements(const Half* p) {
  return FloatVector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
BARACUDA_INLINE void store_elements(Half* p, FloatVector v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
BARACUDA_INLINE FloatVector load_elements(const Half* p) {
  const Uint32Vector half = widen(p);
  // With the exponent field moved into place, 2^112 corrects the bias, subnormals included.
  const Uint32Vector magnitude =
      Uint32Vector(FloatVector((half & 0x7fffu) << 13) * splat(0x1p112f));
  const Uint32Vector special = ((half & 0x7fffu) << 13) | 0x7f800000u;  // inf or NaN
  const Int32Vector is_special = Int32Vector((half & 0x7c00u) == 0x7c00u);
  return FloatVector(select(is_special, special, magnitude) | ((half & 0x8000u) << 16));
}

BARACUDA_INLINE void store_elements(Half* p, FloatVector v) {
  const Uint32Vector bits = Uint32Vector(v);
  const Uint32Vector magnitude = bits & 0x7fffffffu;
  const FloatVector value = FloatVector(magnitude);
  // Normal: rebias the exponent by -112 and round the 13 dropped bits to nearest even.
  const Uint32Vector normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded by the FPU.
  const Uint32Vector subnormal = Uint32Vector(value + splat(0.5f)) - 0x3f000000u;
  Uint32Vector half = select(value < splat(0x1p-14f), subnormal, normal);
  half = select(value >= splat(65520.0f), Uint32Vector{} + 0x7c00u, half);
  half = select(v == v, half, ((magnitude >> 13) & 0x3ffu) | 0x7e00u);
  store_narrow(p, half | ((bits >> 16) & 0x8000u));
}
#endif

// dst may be written, as zeros, up to the next multiple of the vector width.
template <class E, class T>
inline void load_row(const E* src, T* dst, int64_t count) {
  constexpr int kWidth = Simd<T>::kWidth;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(dst + i, load_elements(src + i));
  if (i < count) {
    E padded[kWidth] = {};
    for (int64_t j = i; j < count; ++j) padded[j - i] = src[j];
    store(dst + i, load_elements(padded));
  }
}

// Reads src up to the next multiple of the vector width.
template <class E, class T>
inline void store_row(const T* src, E* dst, int64_t count) {
  using V = typename Simd<T>::Vector;
  constexpr int kWidth = Simd<T>::kWidth;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store_elements(dst + i, load<V>(src + i));
  if (i < count) {
    E padded[kWidth];
    store_elements(padded, load<V>(src + i));
    for (int64_t j = i; j < count; ++j) dst[j] = padded[j - i];
  }
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
