// The two products of attention as register tiles. Every output element is summed in an order that
// does not depend on the shape of its tile, so a row's result never depends on its neighbours.
#pragma once

#include <stdint.h>

#include "attention/forward/host/simd.h"

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

// Rows of a panel: queries lie side by side in vectors, so softmax needs no horizontal step and
// K needs no transpose.
template <class T>
constexpr int kPanelRows = kScoreVectors * Simd<T>::kWidth;

// scores[key][row] = sum_d k[key][d] * q[d][row] for KEYS keys and VECTORS vectors of rows, added
// to what is there if `more`.
template <int KEYS, int VECTORS, class T>
BARACUDA_INLINE void score_tile(const T* q, const T* k, int64_t k_stride, int64_t head_dim,
                                bool more, T* scores) {
  using V = typename Simd<T>::Vector;
  constexpr int kWidth = Simd<T>::kWidth;
  constexpr int kPanel = kPanelRows<T>;
  V acc[KEYS][VECTORS] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    V row[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) row[v] = load<V>(q + d * kPanel + v * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < KEYS; ++i) {
      const V key = splat(k[i * k_stride + d]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) acc[i][v] = fma(row[v], key, acc[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < KEYS; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      T* sum = scores + i * kPanel + v * kWidth;
      store(sum, more ? load<V>(sum) + acc[i][v] : acc[i][v]);
    }
  }
}

template <int KEYS, int VECTORS, class T>
inline void score_rest(const T* q, const T* k, int64_t k_stride, int64_t head_dim, int64_t keys,
                       bool more, T* scores) {
  if (keys == KEYS) {
    score_tile<KEYS, VECTORS>(q, k, k_stride, head_dim, more, scores);
  } else if constexpr (KEYS > 1) {
    score_rest<KEYS - 1, VECTORS>(q, k, k_stride, head_dim, keys, more, scores);
  }
}

template <int VECTORS, class T>
void score_keys(const T* q, const T* k, int64_t k_stride, int64_t head_dim, int64_t keys,
                bool more, T* scores) {
  int64_t j = 0;
  for (; j + kScoreKeys <= keys; j += kScoreKeys) {
    score_tile<kScoreKeys, VECTORS>(q, k + j * k_stride, k_stride, head_dim, more,
                                    scores + j * kPanelRows<T>);
  }
  score_rest<kScoreKeys, VECTORS>(q, k + j * k_stride, k_stride, head_dim, keys - j,
                                  more, scores + j * kPanelRows<T>);
}

// The scores of a panel's first `vectors` vectors of rows.
template <int VECTORS = kScoreVectors, class T>
inline void score_panel(int vectors, const T* q, const T* k, int64_t k_stride, int64_t head_dim,
                        int64_t keys, T* scores) {
  if (vectors == VECTORS) {
    // In pieces of head_dim: a piece of Q stays in the L1 cache, and short sums lose fewer bits.
    constexpr int64_t kPiece = 32;
    for (int64_t d = 0; d < head_dim; d += kPiece) {
      const int64_t piece = head_dim - d < kPiece ? head_dim - d : kPiece;
      score_keys<VECTORS>(q + d * kPanelRows<T>, k + d, k_stride, piece, keys, d > 0, scores);
    }
  } else if constexpr (VECTORS > 1) {
    score_panel<VECTORS - 1>(vectors, q, k, k_stride, head_dim, keys, scores);
  }
}

// sum[row][d] = start[row][d] + sum over keys of p[key][row] * v[key][d], for ROWS rows and
// VECTORS vectors of d. start may be null (zeros). Then either sum is stored as it is (alpha
// null), or out = alpha[row] * out + sum.
template <int ROWS, int VECTORS, class T>
BARACUDA_INLINE void value_tile(const T* p, const T* v, int64_t v_stride, int64_t keys,
                                const T* start, const T* alpha, T* out, int64_t out_stride) {
  using V = typename Simd<T>::Vector;
  constexpr int kWidth = Simd<T>::kWidth;
  V acc[ROWS][VECTORS] = {};
  if (start != nullptr) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < VECTORS; ++c) acc[r][c] = load<V>(start + r * out_stride + c * kWidth);
    }
  }
  for (int64_t j = 0; j < keys; ++j) {
    V value[VECTORS];
#pragma GCC unroll 8
    for (int c = 0; c < VECTORS; ++c) value[c] = load<V>(v + c * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const V weight = splat(p[r]);
#pragma GCC unroll 8
      for (int c = 0; c < VECTORS; ++c) acc[r][c] = fma(weight, value[c], acc[r][c]);
    }
    p += kPanelRows<T>;
    v += v_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < VECTORS; ++c) {
      T* element = out + r * out_stride + c * kWidth;
      const V sum = acc[r][c];
      store(element, alpha == nullptr ? sum : fma(splat(alpha[r]), load<V>(element), sum));
    }
  }
}

template <int ROWS, int VECTORS, class T>
void value_columns(const T* p, const T* v, int64_t v_stride, int64_t keys, const T* start,
                   const T* alpha, T* out, int64_t out_stride) {
  value_tile<ROWS, VECTORS>(p, v, v_stride, keys, start, alpha, out, out_stride);
}

// value_tile over all columns (padded_dim: a multiple of the vector width).
template <int ROWS, class T>
void value_rows(const T* p, const T* v, int64_t v_stride, int64_t keys, const T* start,
                const T* alpha, T* out, int64_t padded_dim) {
  constexpr int kWidth = Simd<T>::kWidth;
  int64_t left = padded_dim / kWidth;
  // Tiles of even width: a narrow last one would wait on the latency of its few chains.
  int64_t tiles = (left + kValueVectors - 1) / kValueVectors;
  for (int64_t column = 0; left > 0; --tiles) {
    const int64_t vectors = (left + tiles - 1) / tiles;
    const T* from = start == nullptr ? nullptr : start + column;
    if (kValueVectors >= 3 && vectors == 3) {
      value_columns<ROWS, 3>(p, v + column, v_stride, keys, from, alpha, out + column, padded_dim);
    } else if (vectors == 2) {
      value_columns<ROWS, 2>(p, v + column, v_stride, keys, from, alpha, out + column, padded_dim);
    } else {
      value_columns<ROWS, 1>(p, v + column, v_stride, keys, from, alpha, out + column, padded_dim);
    }
    left -= vectors;
    column += vectors * kWidth;
  }
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
