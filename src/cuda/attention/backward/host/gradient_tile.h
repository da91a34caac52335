// A tile of keys against tiles of rows: recomputes the scores and their gradients, and sums dq, dk
// and dv. The math is in the type of the sums (delta is summed in double), and only inputs and
// outputs are 16-bit, so no gradient underflows before it is rounded.
#pragma once

#include <stdint.h>

#include "attention/backward/host/gradients.h"
#include "attention/backward/host/products.h"
#include "attention/forward/host/convert.h"

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

// E: element in memory, T: type of the math.
template <class E>
class GradientTile {
  using T = typename MathOf<E>::Type;
  using S = Simd<T>;
  using V = typename S::Vector;
  using I = typename S::Int;
  using IntScalar = typename S::IntScalar;
  static constexpr int kWidth = S::kWidth;
  static constexpr int64_t kPanel = kPanelRows<T>;
  static constexpr bool kDirect = sizeof(E) == sizeof(T);  // operands may be read in place

 public:
  // The same layout of the scratch for all tiles of a call.
  GradientTile(const GradientShape& shape, void* scratch)
      : shape_(shape),
        dim_(shape.head_dim),
        padded_dim_((dim_ + kWidth - 1) / kWidth * kWidth),
        stride_(padded_dim_ + kWidth),  // not a power of two: rows would share cache sets
        scale_(T(shape.scale)),
        next_(static_cast<T*>(scratch)) {
    const int64_t panels = (shape.tile_keys + kPanel - 1) / kPanel;
    panel_stride_ = shape.tile_rows * kPanel;
    k_panels_ = take(panels * kPanel * dim_);
    v_panels_ = take(panels * kPanel * dim_);
    k_rows_ = take(shape.tile_keys * stride_);
    v_rows_ = q_rows_ = take(shape.tile_rows * stride_);
    dy_rows_ = take(shape.tile_rows * stride_);
    weights_ = take(panels * panel_stride_);
    gradients_ = take(panels * panel_stride_);
    dk_ = take(shape.tile_keys * padded_dim_);
    dv_ = take(shape.tile_keys * padded_dim_);
    dq_ = take(shape.tile_rows * padded_dim_);
  }

  void prepare(const RowStatistics& rows) {
    for (int64_t r = 0; r < rows.count; ++r) {
      load_row(static_cast<const E*>(rows.y) + r * rows.y_stride, q_rows_, dim_);
      load_row(static_cast<const E*>(rows.dy) + r * rows.dy_stride, dy_rows_, dim_);
      double sum[4] = {};
      int64_t d = 0;
      for (; d + 4 <= dim_; d += 4) {
        for (int i = 0; i < 4; ++i) sum[i] += double(q_rows_[d + i]) * double(dy_rows_[d + i]);
      }
      for (; d < dim_; ++d) sum[0] += double(q_rows_[d]) * double(dy_rows_[d]);
      double delta = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      if (rows.dlse != nullptr)
        delta -= double(static_cast<const T*>(rows.dlse)[r * rows.dlse_stride]);
      const T lse = static_cast<const T*>(rows.lse)[r * rows.lse_stride];
      static_cast<T*>(rows.delta)[r] = T(delta);
      static_cast<T*>(rows.lse_out)[r] = lse == -S::kInfinity ? S::kInfinity : lse;
    }
  }

  void start(const KeyTile& keys) {
    __builtin_memset(dk_, 0, sizeof(T) * keys.count * padded_dim_);
    __builtin_memset(dv_, 0, sizeof(T) * keys.count * padded_dim_);
  }

  void pack(const KeyTile& keys) {
    pack(rows_of(keys.v, keys.v_stride, keys.count, v_rows_), keys.count, v_panels_);
    pack(keys_of(keys, true), keys.count, k_panels_);
  }

  void accumulate(const KeyTile& keys, const RowTile& rows, int wanted) {
    const Range visible = seen_by_any(keys, rows);
    const bool is_seen = visible.begin < visible.end;
    if (is_seen) {
      q_ = rows_of(rows.q, rows.q_stride, rows.count, q_rows_);
      dy_ = rows_of(rows.dy, rows.dy_stride, rows.count, dy_rows_);
      fill_weights(rows, visible);
    }
    const Rows k = keys_of(keys, false);
    const bool by_pairs = is_seen && is_cut(rows, visible) && !is_finite(keys, k, rows);
    if ((wanted & kWantDkv) != 0 && is_seen) {
      if (by_pairs) {
        add_to_keys_one_by_one(rows, visible);
      } else {
        add_to_keys(rows, visible);
      }
    }
    if ((wanted & kWantDq) == 0) return;
    load_dq(rows);
    if (is_seen) add_to_rows(rows, visible, k, by_pairs);
    store_dq(rows);
  }

  void finish(const KeyTile& keys) {
    const V scale = splat(scale_);
    for (int64_t j = 0; j < keys.count; ++j) {
      T* dk = dk_ + j * padded_dim_;
      for (int64_t c = 0; c < padded_dim_; c += kWidth) store(dk + c, load<V>(dk + c) * scale);
      if (shape_.wide_kv) {
        store_row(dk, static_cast<T*>(keys.dk) + j * keys.dk_stride, dim_);
        store_row(dv_ + j * padded_dim_, static_cast<T*>(keys.dv) + j * keys.dv_stride, dim_);
      } else {
        store_row(dk, static_cast<E*>(keys.dk) + j * keys.dk_stride, dim_);
        store_row(dv_ + j * padded_dim_, static_cast<E*>(keys.dv) + j * keys.dv_stride, dim_);
      }
    }
  }

  void skip(const RowTile& rows) {
    load_dq(rows);
    store_dq(rows);
  }

 private:
  struct Rows {
    const T* data;
    int64_t stride;
  };
  struct Range {
    int64_t begin;
    int64_t end;
  };

  T* take(int64_t count) {
    T* taken = next_;
    next_ += (count + kWidth - 1) / kWidth * kWidth;
    return taken;
  }

  // Rows in the type of the math, in place or copied. Rows with a large stride are copied too,
  // because they would miss the TLB and share cache sets.
  bool is_fast_stride(int64_t stride) const {
    return kDirect && stride >= 0 && stride <= 2 * dim_ && dim_ % kWidth == 0;
  }
  Rows rows_of(const void* data, int64_t stride, int64_t count, T* copy) {
    const E* rows = static_cast<const E*>(data);
    if constexpr (kDirect) {
      if (is_fast_stride(stride)) return {rows, stride};
    }
    for (int64_t r = 0; r < count; ++r) load_row(rows + r * stride, copy + r * stride_, dim_);
    return {copy, stride_};
  }
  // The rows of K. If they must be copied, that is done once, while K is packed.
  Rows keys_of(const KeyTile& keys, bool packing) {
    if (packing || is_fast_stride(keys.k_stride))
      return rows_of(keys.k, keys.k_stride, keys.count, k_rows_);
    return {k_rows_, stride_};
  }

  // Packs keys into vectors, [panel][d][lane]. Lanes without a key are zero.
  void pack(Rows rows, int64_t count, T* panels) {
    for (int64_t first = 0; first < count; first += kPanel, panels += kPanel * dim_) {
      const int64_t keys = count - first < kPanel ? count - first : kPanel;
      if (keys < kPanel) __builtin_memset(panels, 0, sizeof(T) * kPanel * dim_);
      // A few columns at a time, so that their lanes stay in the L1 cache.
      for (int64_t column = 0; column < dim_; column += 8) {
        const int64_t end = column + 8 < dim_ ? column + 8 : dim_;
        for (int64_t j = 0; j < keys; ++j) {
          const T* row = rows.data + (first + j) * rows.stride;
          for (int64_t d = column; d < end; ++d) panels[d * kPanel + j] = row[d];
        }
      }
    }
  }

  static Range seen_by_any(const KeyTile& keys, const RowTile& rows) {
    Range visible = {keys.count, 0};
    for (int64_t r = 0; r < rows.count; ++r) {
      if (rows.begin[r] >= rows.end[r]) continue;
      if (rows.begin[r] < visible.begin) visible.begin = rows.begin[r];
      if (rows.end[r] > visible.end) visible.end = rows.end[r];
    }
    return visible;
  }
  // True if two rows see different keys.
  static bool is_cut(const RowTile& rows, Range visible) {
    for (int64_t r = 0; r < rows.count; ++r) {
      if (rows.begin[r] != visible.begin || rows.end[r] != visible.end) return true;
    }
    return false;
  }
  bool are_finite(Rows rows, int64_t count) const {
    V sum = {};
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < padded_dim_; c += kWidth) {
        const V x = load<V>(rows.data + r * rows.stride + c);
        sum += x - x;  // 0, or NaN
      }
    }
    for (int i = 0; i < kWidth; ++i) {
      if (!(sum[i] == T(0))) return false;
    }
    return true;
  }
  // True if all values are finite, so that a weight of zero gives a product of zero.
  bool is_finite(const KeyTile& keys, Rows k, const RowTile& rows) const {
    return are_finite(q_, rows.count) && are_finite(dy_, rows.count) && are_finite(k, keys.count);
  }

  // Computes P and dS of all pairs in the panels that hold the keys `visible`; 0 for a pair that
  // the mask hides.
  void fill_weights(const RowTile& rows, Range visible) {
    for (int64_t panel = visible.begin / kPanel; panel * kPanel < visible.end; ++panel) {
      const int64_t first = panel * kPanel;
      const int64_t lanes = visible.end - first < kPanel ? visible.end - first : kPanel;
      const int vectors = static_cast<int>((lanes + kWidth - 1) / kWidth);
      T* weights = weights_ + panel * panel_stride_;
      T* gradients = gradients_ + panel * panel_stride_;
      score_panel(vectors, k_panels_ + first * dim_, q_.data, q_.stride, dim_, rows.count, weights);
      score_panel(vectors, v_panels_ + first * dim_, dy_.data, dy_.stride, dim_, rows.count,
                  gradients);
      for (int64_t r = 0; r < rows.count; ++r) {
        softmax_gradient(weights + r * kPanel, gradients + r * kPanel, vectors,
                         static_cast<const T*>(rows.lse)[r], static_cast<const T*>(rows.delta)[r],
                         rows.begin[r] - first, rows.end[r] - first);
      }
    }
  }

  // For one row: turns scores into weights, and gradients of weights into gradients of scores.
  void softmax_gradient(T* scores, T* gradients, int vectors, T lse, T delta, int64_t begin,
                        int64_t end) {
    constexpr T kLog2E = T(1.4426950408889634);
    const V zero = {};
    // Above this bound the power is infinite: the lse does not belong to these scores.
    const V top = splat(T(S::kBias + 1));
    for (int64_t lane = 0; lane < vectors * kWidth; lane += kWidth) {
      // Multiplies by scale before lse is subtracted, and by log2(e) after, so that values as large
      // as lse are rounded once.
      V x = fma(load<V>(scores + lane), splat(scale_), splat(-lse)) * splat(kLog2E);
      x = x > top ? top : x;  // a NaN stays
      V weight = exp2_nonpositive<T>(x);
      V gradient = weight * (load<V>(gradients + lane) - splat(delta));
      if (lane < begin || lane + kWidth > end) {
        I index;
        for (int i = 0; i < kWidth; ++i) index[i] = static_cast<IntScalar>(lane + i);
        const I seen = (index >= static_cast<IntScalar>(begin)) & (index < static_cast<IntScalar>(end));
        weight = seen ? weight : zero;
        gradient = seen ? gradient : zero;
      }
      store(scores + lane, weight);
      store(gradients + lane, gradient);
    }
  }

  // dv += P' dy and dk += dS' q.
  void add_to_keys(const RowTile& rows, Range visible) {
    int64_t begin = 0, end = rows.count;  // rows that see a key
    while (rows.begin[begin] >= rows.end[begin]) ++begin;
    while (rows.begin[end - 1] >= rows.end[end - 1]) --end;
    add_to_keys(visible, {begin, end});
  }
  void add_to_keys(Range keys, Range rows) {
    for (int64_t panel = keys.begin / kPanel; panel * kPanel < keys.end; ++panel) {
      const int64_t first = panel * kPanel;
      const int64_t begin = keys.begin > first ? keys.begin - first : 0;
      const int64_t end = keys.end - first < kPanel ? keys.end - first : kPanel;
      const int64_t out = first * padded_dim_;
      const int64_t at = panel * panel_stride_;
      add_weighted<OverRows<T>>(WeightedRows<T>{weights_ + at, 0, dy_.data, dy_.stride, rows.begin,
                                                rows.end, dv_ + out, padded_dim_},
                                begin, end, padded_dim_);
      add_weighted<OverRows<T>>(WeightedRows<T>{gradients_ + at, 0, q_.data, q_.stride, rows.begin,
                                                rows.end, dk_ + out, padded_dim_},
                                begin, end, padded_dim_);
    }
  }
  // One key at a time, with only the rows that see it: 0 * NaN is NaN.
  void add_to_keys_one_by_one(const RowTile& rows, Range visible) {
    for (int64_t j = visible.begin; j < visible.end; ++j) {
      // Neither end of the interval falls from row to row.
      int64_t begin = 0, end = rows.count;
      while (begin < rows.count && rows.end[begin] <= j) ++begin;
      while (end > begin && rows.begin[end - 1] > j) --end;
      if (begin < end) add_to_keys({j, j + 1}, {begin, end});
    }
  }

  // dq += dS k, not yet scaled.
  void add_to_rows(const RowTile& rows, Range visible, Rows k, bool by_pairs) {
    WeightedRows<T> sum = {gradients_,    panel_stride_, k.data, k.stride,
                           visible.begin, visible.end,   dq_,    padded_dim_};
    if (!by_pairs) {
      add_weighted<OverKeys<T>>(sum, 0, rows.count, padded_dim_);
      return;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      sum.begin = rows.begin[r];
      sum.end = rows.end[r];
      if (sum.begin < sum.end) add_weighted<OverKeys<T>>(sum, r, r + 1, padded_dim_);
    }
  }

  void load_dq(const RowTile& rows) {
    if (!rows.has_sum) {
      __builtin_memset(dq_, 0, sizeof(T) * rows.count * padded_dim_);
      return;
    }
    for (int64_t r = 0; r < rows.count; ++r)
      load_row(static_cast<const T*>(rows.dq_sum) + r * dim_, dq_ + r * padded_dim_, dim_);
  }
  void store_dq(const RowTile& rows) {
    const V scale = splat(scale_);
    for (int64_t r = 0; r < rows.count; ++r) {
      T* dq = dq_ + r * padded_dim_;
      if (!rows.is_last) {
        store_row(dq, static_cast<T*>(rows.dq_sum) + r * dim_, dim_);
        continue;
      }
      for (int64_t c = 0; c < padded_dim_; c += kWidth) store(dq + c, load<V>(dq + c) * scale);
      store_row(dq, static_cast<E*>(rows.dq) + r * rows.dq_stride, dim_);
    }
  }

  const GradientShape& shape_;
  const int64_t dim_;
  const int64_t padded_dim_;
  const int64_t stride_;
  const T scale_;
  T* next_;
  int64_t panel_stride_;
  T* k_panels_;   // K and V, packed
  T* v_panels_;
  T* k_rows_;     // K, if it is not read in place
  T* v_rows_;     // V until it is packed; Q and dy follow there, since tile_keys <= 2 * tile_rows
  T* q_rows_;     // Q and dy, if they are not read in place
  T* dy_rows_;
  T* weights_;    // P [panel][row][lane], and dS
  T* gradients_;
  T* dk_;
  T* dv_;
  T* dq_;
  Rows q_ = {};
  Rows dy_ = {};
};

template <class E>
void prepare_rows(const GradientShape& shape, const RowStatistics& rows, void* scratch) {
  GradientTile<E>(shape, scratch).prepare(rows);
}
template <class E>
void start_tile(const GradientShape& shape, const KeyTile& keys, void* scratch) {
  GradientTile<E>(shape, scratch).start(keys);
}
template <class E>
void pack_tile(const GradientShape& shape, const KeyTile& keys, void* scratch) {
  GradientTile<E>(shape, scratch).pack(keys);
}
template <class E>
void accumulate_tile(const GradientShape& shape, const KeyTile& keys, const RowTile& rows,
                     int wanted, void* scratch) {
  GradientTile<E>(shape, scratch).accumulate(keys, rows, wanted);
}
template <class E>
void finish_tile(const GradientShape& shape, const KeyTile& keys, void* scratch) {
  GradientTile<E>(shape, scratch).finish(keys);
}
template <class E>
void skip_rows(const GradientShape& shape, const RowTile& rows, void* scratch) {
  GradientTile<E>(shape, scratch).skip(rows);
}

template <class T, class Out>
void add_run(const SumRun& run) {
  using V = typename Simd<T>::Vector;
  constexpr int kWidth = Simd<T>::kWidth;
  constexpr int64_t kPart = 32 * kWidth;
  const T* const received = static_cast<const T*>(run.received);
  const T* const share = static_cast<const T*>(run.share);
  Out* const out = static_cast<Out*>(run.out);
  T sum[kPart];
  for (int64_t first = 0; first < run.count; first += kPart) {
    const int64_t count = run.count - first < kPart ? run.count - first : kPart;
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth)
      store(sum + i, load<V>(received + first + i) + load<V>(share + first + i));
    for (; i < count; ++i) sum[i] = received[first + i] + share[first + i];
    store_row(sum, out + first, count);
  }
}
template <class E>
void add_sums(const SumRun& run) {
  using T = typename MathOf<E>::Type;
  run.is_wide ? add_run<T, T>(run) : add_run<T, E>(run);
}

template <class E>
constexpr GradientFunctions gradient_functions() {
  return {prepare_rows<E>, start_tile<E>, pack_tile<E>, accumulate_tile<E>,
          finish_tile<E>,  skip_rows<E>,  add_sums<E>};
}

constexpr GradientKernels gradient_kernels() {
  return {{gradient_functions<Half>(), gradient_functions<BFloat16>(), gradient_functions<float>(),
           gradient_functions<double>()}};
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
