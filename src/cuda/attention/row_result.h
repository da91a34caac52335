// The results of a row's statistics: its factor and its log-sum-exp, equal on every device. m is
// the largest score, l the sum of exp(scale * (score - m)).
//
// A row that saw no key has m = -inf and l = +0; its y is 0 and its lse -inf. A row whose keys all
// had the score -inf (an Inf in Q or K) has m = -inf and l = -0; its softmax is undefined and it
// gives NaN, unless a later key has a finite score. -0 adds like 0, so sums need no special case.
#pragma once

#if defined(__CUDACC__)
#include <math_constants.h>
#define BARACUDA_ROW_RESULT __host__ __device__ __forceinline__
#else
// Of internal linkage: the host family compiles this for several instruction sets.
#define BARACUDA_ROW_RESULT static inline __attribute__((always_inline))
#endif

namespace baracuda {
namespace row_result {

BARACUDA_ROW_RESULT bool is_negative(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(x) < 0;
#else
  return __builtin_signbit(x) != 0;
#endif
}
BARACUDA_ROW_RESULT bool is_negative(double x) {
#if defined(__CUDA_ARCH__)
  return signbit(x);
#else
  return __builtin_signbit(x) != 0;
#endif
}
BARACUDA_ROW_RESULT float logarithm(float x) {
#if defined(__CUDA_ARCH__)
  return logf(x);
#else
  return __builtin_logf(x);
#endif
}
BARACUDA_ROW_RESULT double logarithm(double x) {
#if defined(__CUDA_ARCH__)
  return log(x);
#else
  return __builtin_log(x);
#endif
}
BARACUDA_ROW_RESULT float infinity(float) { return __builtin_huge_valf(); }
BARACUDA_ROW_RESULT double infinity(double) { return __builtin_huge_val(); }
BARACUDA_ROW_RESULT float not_a_number(float) {
#if defined(__CUDA_ARCH__)
  return CUDART_NAN_F;
#else
  return __builtin_nanf("");
#endif
}
BARACUDA_ROW_RESULT double not_a_number(double) {
#if defined(__CUDA_ARCH__)
  return CUDART_NAN;
#else
  return __builtin_nan("");
#endif
}

}  // namespace row_result

// True if a stored sum is the -0 of an undefined row. Other sums of weights are not negative.
template <typename T>
BARACUDA_ROW_RESULT bool is_undefined_sum(T l) {
  return row_result::is_negative(l);
}

// True if a row has no weights so far. It is undefined if it saw keys in this step or was undefined
// before.
template <typename T>
BARACUDA_ROW_RESULT bool is_empty_row(T m, T l) {
  return m == -row_result::infinity(T()) && l == T(0);
}

// The sum to be stored.
template <typename T>
BARACUDA_ROW_RESULT T stored_sum(T l, bool undefined) {
  return undefined ? -T(0) : l;
}

// The value of a row without weights: NaN if it is undefined, else 0.
template <typename T>
BARACUDA_ROW_RESULT T empty_row(bool undefined) {
  return undefined ? row_result::not_a_number(T()) : T(0);
}

// The factor of o_acc, and the divisor for code that divides.
template <typename T>
BARACUDA_ROW_RESULT T row_factor(T l, T empty) {
  return l == T(0) ? empty : T(1) / l;
}
template <typename T>
BARACUDA_ROW_RESULT T row_divisor(T l, bool undefined) {
  return l != T(0) ? l : undefined ? row_result::not_a_number(T()) : T(1);
}

// scale: the factor of m, in the type of the product.
template <typename T, typename Scale>
BARACUDA_ROW_RESULT T log_sum_exp(T m, Scale scale, T l, T empty) {
  return l == T(0) ? empty - row_result::infinity(T())
                   : static_cast<T>(m * scale + row_result::logarithm(l));
}

}  // namespace baracuda
