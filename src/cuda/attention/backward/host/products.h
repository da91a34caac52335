// Sums of weighted rows as register tiles: out[r] += sum over j of weight[r, j] * x[j]. The order
// of a sum does not depend on the shape of its tile. Each sum starts at zero and is added to out
// once, because adding one by one to a long sum would lose more of every addend.
#pragma once

#include <stdint.h>

#include "attention/forward/host/tiles.h"

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

// Weights are stored in panels of kPanelRows lanes, [panel][row][lane], with a lane for each key.
// Gradients of keys are sums over the rows of a lane. Gradients of rows are sums over lanes, panel
// after panel.
template <class T>
struct OverRows {
  static constexpr int64_t kNextOutput = 1;
  static constexpr int64_t kNextAddend = kPanelRows<T>;
};
template <class T>
struct OverKeys {
  static constexpr int64_t kNextOutput = kPanelRows<T>;
  static constexpr int64_t kNextAddend = 1;
};

template <class T>
struct WeightedRows {
  const T* weights;
  int64_t panel_stride;  // between panels; over rows there is one
  const T* x;
  int64_t x_stride;
  int64_t begin;  // of the addends
  int64_t end;
  T* out;
  int64_t out_stride;
};

template <class Over, int ROWS, int VECTORS, class T>
BARACUDA_INLINE void weighted_tile(const WeightedRows<T>& sum, int64_t row, int64_t column) {
  using V = typename Simd<T>::Vector;
  constexpr int kWidth = Simd<T>::kWidth;
  constexpr int64_t kPanel = kPanelRows<T>;
  V acc[ROWS][VECTORS] = {};
  const T* x = sum.x + sum.begin * sum.x_stride + column;
  int64_t j = sum.begin;
  while (j < sum.end) {
    const T* w = sum.weights + row * Over::kNextOutput;
    int64_t stop = sum.end;
    if constexpr (Over::kNextAddend == 1) {
      const int64_t panel = j / kPanel;
      w += panel * sum.panel_stride + j % kPanel;
      stop = (panel + 1) * kPanel < stop ? (panel + 1) * kPanel : stop;
    } else {
      w += j * Over::kNextAddend;
    }
    for (; j < stop; ++j) {
      V value[VECTORS];
#pragma GCC unroll 8
      for (int c = 0; c < VECTORS; ++c) value[c] = load<V>(x + c * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const V weight = splat(w[r * Over::kNextOutput]);
#pragma GCC unroll 8
        for (int c = 0; c < VECTORS; ++c) acc[r][c] = fma(weight, value[c], acc[r][c]);
      }
      w += Over::kNextAddend;
      x += sum.x_stride;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < VECTORS; ++c) {
      T* element = sum.out + (row + r) * sum.out_stride + column + c * kWidth;
      store(element, load<V>(element) + acc[r][c]);
    }
  }
}

// All columns (padded_dim: a multiple of the vector width) of ROWS rows.
template <class Over, int ROWS, class T>
void weighted_rows(const WeightedRows<T>& sum, int64_t row, int64_t padded_dim) {
  constexpr int kWidth = Simd<T>::kWidth;
  int64_t left = padded_dim / kWidth;
  // Tiles of even width: a narrow last one would wait on the latency of its few chains.
  int64_t tiles = (left + kValueVectors - 1) / kValueVectors;
  for (int64_t column = 0; left > 0; --tiles) {
    const int64_t vectors = (left + tiles - 1) / tiles;
    if (kValueVectors >= 3 && vectors == 3) {
      weighted_tile<Over, ROWS, 3>(sum, row, column);
    } else if (vectors == 2) {
      weighted_tile<Over, ROWS, 2>(sum, row, column);
    } else {
      weighted_tile<Over, ROWS, 1>(sum, row, column);
    }
    left -= vectors;
    column += vectors * kWidth;
  }
}

// The outputs [row, end_row).
template <class Over, class T>
inline void add_weighted(const WeightedRows<T>& sum, int64_t row, int64_t end_row,
                         int64_t padded_dim) {
  for (; row + kValueRows <= end_row; row += kValueRows)
    weighted_rows<Over, kValueRows>(sum, row, padded_dim);
  for (; row + 2 <= end_row; row += 2) weighted_rows<Over, 2>(sum, row, padded_dim);
  if (row < end_row) weighted_rows<Over, 1>(sum, row, padded_dim);
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
