// One block of query rows against a chunk of K and V: the blocked FlashAttention of the host.
#pragma once

#include <stdint.h>

#include "attention/forward/host/block.h"
#include "attention/forward/host/convert.h"
#include "attention/forward/host/softmax.h"
#include "attention/forward/host/tiles.h"

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

BARACUDA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
BARACUDA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// E: element in memory, T: type of the math.
template <class E>
class FlashBlock {
  using T = typename MathOf<E>::Type;
  using S = Simd<T>;
  using V = typename S::Vector;
  static constexpr int kWidth = S::kWidth;
  static constexpr int kPanel = kPanelRows<T>;
  static constexpr bool kDirect = sizeof(E) == sizeof(T);  // K and V may be read where they lie

 public:
  FlashBlock(const BlockProblem& problem, const BlockRows& rows, void* scratch)
      : problem_(problem), rows_(rows), dim_(problem.head_dim) {
    magnitude_ = problem.scale == 0 ? 1.0 : __builtin_fabs(problem.scale);
    const double log2_scale = magnitude_ * 1.4426950408889634;
    log2_scale_ = log2_scale < double(S::kMax) ? T(log2_scale) : S::kMax;
    padded_dim_ = (dim_ + kWidth - 1) / kWidth * kWidth;
    // A tile of K and one of V fit the L2 cache of any recent CPU; multiples of the score tile.
    const int64_t row_bytes = padded_dim_ * int64_t(sizeof(T));
    tile_keys_ = row_bytes <= 512 ? 192 : row_bytes <= 1024 ? 96 : 48;
    tile_stride_ = padded_dim_ + kWidth;  // off the powers of two, which share cache sets
    T* next = static_cast<T*>(scratch);
    const auto take = [&next](int64_t count) {
      T* taken = next;
      next += (count + kWidth - 1) / kWidth * kWidth;
      return taken;
    };
    m_ = take(kMaxBlockRows);
    l_ = take(kMaxBlockRows);
    alpha_ = take(kPanel);
    scores_ = take(tile_keys_ * kPanel);
    partial_ = take(kValueRows * padded_dim_);
    out_ = take(rows.count * padded_dim_);
    q_ = take((rows.count + kPanel - 1) / kPanel * kPanel * dim_);
    k_tile_ = take(tile_keys_ * tile_stride_);
    v_tile_ = take(tile_keys_ * tile_stride_);
  }

  void run() {
    int64_t keys = 0;
    for (int64_t r = 0; r < rows_.count; ++r) keys = larger(keys, rows_.visible[r]);
    if (keys == 0 && !problem_.first && !problem_.last) return;
    load_state();
    if (keys > 0) pack_queries();
    for (int64_t start = 0; start < keys; start += tile_keys_) {
      if (problem_.stop.ask(problem_.stop.context)) return;
      fold_tile(start, smaller(tile_keys_, keys - start));
    }
    if (problem_.last) {
      write_output();
    } else {
      store_state();
    }
  }

 private:
  void load_state() {
    const T* o_acc = static_cast<const T*>(problem_.state);
    for (int64_t r = 0; r < kMaxBlockRows; ++r) {
      const bool stored = r < rows_.count && !problem_.first;
      m_[r] = stored ? o_acc[problem_.total_rows * dim_ + rows_.row[r]] : -S::kInfinity;
      l_[r] = stored ? o_acc[problem_.total_rows * (dim_ + 1) + rows_.row[r]] : T(0);
    }
    if (problem_.first) {
      __builtin_memset(out_, 0, sizeof(T) * rows_.count * padded_dim_);
      return;
    }
    for (int64_t r = 0; r < rows_.count; ++r) {
      load_row(o_acc + rows_.row[r] * dim_, out_ + r * padded_dim_, dim_);
    }
  }

  void store_state() {
    T* o_acc = static_cast<T*>(problem_.state);
    for (int64_t r = 0; r < rows_.count; ++r) {
      store_row(out_ + r * padded_dim_, o_acc + rows_.row[r] * dim_, dim_);
      o_acc[problem_.total_rows * dim_ + rows_.row[r]] = m_[r];
      o_acc[problem_.total_rows * (dim_ + 1) + rows_.row[r]] = l_[r];
    }
  }

  // Transposes Q into panels. The sign of the scale goes into Q, and a zero scale too, so that
  // 0 * Inf is still NaN; its magnitude goes into the exponent.
  void pack_queries() {
    const T sign = T((problem_.scale > 0) - (problem_.scale < 0));
    const int64_t unused = (kPanel - rows_.count % kPanel) % kPanel;
    if (unused > 0) {
      __builtin_memset(q_ + rows_.count / kPanel * kPanel * dim_, 0, sizeof(T) * kPanel * dim_);
    }
    for (int64_t r = 0; r < rows_.count; ++r) {
      load_row(static_cast<const E*>(rows_.q[r]), partial_, dim_);
      T* lane = q_ + r / kPanel * kPanel * dim_ + r % kPanel;
      for (int64_t d = 0; d < dim_; ++d) lane[d * kPanel] = sign * partial_[d];
    }
  }

  void fold_tile(int64_t start, int64_t keys) {
    const E* k_rows = static_cast<const E*>(problem_.k) + start * problem_.k_stride;
    const E* v_rows = static_cast<const E*>(problem_.v) + start * problem_.v_stride;
    Tile k = convert_tile(k_rows, problem_.k_stride, keys, 1, k_tile_);
    Tile v = convert_tile(v_rows, problem_.v_stride, keys, kWidth, v_tile_);
    for (int64_t first = 0; first < rows_.count; first += kPanel) {
      fold_panel(first, smaller(kPanel, rows_.count - first), start, keys, k, v);
    }
  }

  struct Tile {
    const T* rows;
    int64_t stride;
  };

  // Far-apart rows are copied too: they would miss the TLB and share cache sets. So are long rows
  // where vectors are narrow, as more panels then pass over a tile.
  Tile convert_tile(const E* rows, int64_t stride, int64_t keys, int64_t multiple, T* tile) {
    if constexpr (kDirect) {
      const bool close = stride >= 0 && stride <= 2 * dim_;
      const bool few_passes = kVectorBytes == 64 || dim_ * int64_t(sizeof(T)) <= 256;
      if (close && few_passes && dim_ % multiple == 0) return {rows, stride};
    }
    for (int64_t j = 0; j < keys; ++j) load_row(rows + j * stride, tile + j * tile_stride_, dim_);
    return {tile, tile_stride_};
  }

  void fold_panel(int64_t first, int64_t rows, int64_t start, int64_t tile_keys, Tile k, Tile v) {
    typename S::IntScalar visible[kPanel];
    int64_t keys = 0;
    int64_t open = tile_keys;
    for (int64_t r = 0; r < kPanel; ++r) {
      // Lanes without a row follow the last one; their results go nowhere.
      const int64_t ahead = rows_.visible[first + smaller(r, rows - 1)] - start;
      const int64_t seen = larger(0, smaller(tile_keys, ahead));
      visible[r] = static_cast<typename S::IntScalar>(seen);
      keys = larger(keys, seen);
      open = smaller(open, seen);
    }
    if (keys == 0) return;
    const int vectors = static_cast<int>((rows + kWidth - 1) / kWidth);
    score_panel(vectors, q_ + first * dim_, k.rows, k.stride, dim_, keys, scores_);
    for (int64_t lane = 0; lane < vectors * kWidth; lane += kWidth) {
      softmax_vector<T>(scores_ + lane, open, keys, visible + lane, log2_scale_,
                        m_ + first + lane, l_ + first + lane, alpha_ + lane);
    }
    int64_t r = 0;
    for (; r + kValueRows <= rows; r += kValueRows) add_values<kValueRows>(first, r, visible, v);
    if constexpr (kValueRows > 4) {
      for (; r + 4 <= rows; r += 4) add_values<4>(first, r, visible, v);
    }
    for (; r + 2 <= rows; r += 2) add_values<2>(first, r, visible, v);
    for (; r < rows; ++r) add_values<1>(first, r, visible, v);
  }

  template <int ROWS>
  void add_values(int64_t first, int64_t r, const typename S::IntScalar* visible, Tile v) {
    T* out = out_ + (first + r) * padded_dim_;
    int64_t least = visible[r];
    int64_t most = visible[r];
    for (int i = 1; i < ROWS; ++i) {
      least = smaller(least, visible[r + i]);
      most = larger(most, visible[r + i]);
    }
    if (least == most) {
      if (most > 0) {
        value_rows<ROWS>(scores_ + r, v.rows, v.stride, most, static_cast<const T*>(nullptr),
                         alpha_ + r, out, padded_dim_);
      }
      return;
    }
    // On a diagonal each row goes on alone from the keys that all see: no row touches a V row
    // that it may not see (0 * NaN is NaN).
    value_rows<ROWS>(scores_ + r, v.rows, v.stride, least, static_cast<const T*>(nullptr),
                     static_cast<const T*>(nullptr), partial_, padded_dim_);
    for (int i = 0; i < ROWS; ++i) {
      if (visible[r + i] == 0) continue;
      value_rows<1>(scores_ + least * kPanel + r + i, v.rows + least * v.stride, v.stride,
                    visible[r + i] - least, partial_ + i * padded_dim_, alpha_ + r + i,
                    out + i * padded_dim_, padded_dim_);
    }
  }

  void write_output() {
    for (int64_t r = 0; r < rows_.count; ++r) {
      T* out = out_ + r * padded_dim_;
      // Only an empty row has l == 0 (see softmax.h for -0); its out is 0.
      const bool undefined = l_[r] == 0 && __builtin_signbit(l_[r]) != 0;
      const T divisor = l_[r] != 0 ? l_[r] : undefined ? T(__builtin_nan("")) : T(1);
      for (int64_t c = 0; c < padded_dim_; c += kWidth) {
        store(out + c, load<V>(out + c) / splat(divisor));
      }
      store_row(out, static_cast<E*>(rows_.y[r]), dim_);
      if (problem_.lse != nullptr) {
        const double l = undefined ? __builtin_nan("") : double(l_[r]);
        write_lse(rows_.row[r], double(m_[r]) * magnitude_ + __builtin_log(l));
      }
    }
  }

  void write_lse(int64_t row, double lse) {
    if (problem_.lse_element != problem_.element) {
      static_cast<float*>(problem_.lse)[row] = static_cast<float>(lse);
    } else {
      const T value[kWidth] = {static_cast<T>(lse)};
      store_row(value, static_cast<E*>(problem_.lse) + row, 1);
    }
  }

  const BlockProblem& problem_;
  const BlockRows& rows_;
  int64_t dim_;
  int64_t padded_dim_;
  int64_t tile_keys_;
  int64_t tile_stride_;
  double magnitude_;
  T log2_scale_;
  T* m_;
  T* l_;
  T* alpha_;
  T* scores_;
  T* partial_;
  T* out_;
  T* q_;
  T* k_tile_;
  T* v_tile_;
};

template <class E>
void run_block(const BlockProblem& problem, const BlockRows& rows, void* scratch) {
  FlashBlock<E>(problem, rows, scratch).run();
}

constexpr IsaKernels kernels(const char* name) {
  return {name, {run_block<Half>, run_block<BFloat16>, run_block<float>, run_block<double>}};
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
