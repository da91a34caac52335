// One block of query rows against a chunk of K and V: the blocked FlashAttention of the host.
#pragma once

#include <stdint.h>

#include "attention/forward/host/block.h"
#include "attention/forward/host/convert.h"
#include "attention/forward/host/softmax.h"
#include "attention/forward/host/tiles.h"
#include "attention/row_result.h"

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
  static constexpr bool kDirect = sizeof(E) == sizeof(T);  // K and V may be read in place

 public:
  FlashBlock(const BlockProblem& problem, const BlockRows& rows, void* scratch)
      : problem_(problem), rows_(rows), dim_(problem.head_dim) {
    magnitude_ = problem.scale == 0 ? 1.0 : __builtin_fabs(problem.scale);
    log2_scale_ = T(magnitude_ * 1.4426950408889634);
    padded_dim_ = (dim_ + kWidth - 1) / kWidth * kWidth;
    // A tile of K and one of V fit the L2 cache of any recent CPU; multiples of the score tile.
    const int64_t row_bytes = padded_dim_ * int64_t(sizeof(T));
    tile_keys_ = row_bytes <= 512 ? 192 : row_bytes <= 1024 ? 96 : 48;
    tile_stride_ = padded_dim_ + kWidth;  // not a power of two: rows would share cache sets
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
    int64_t begin = INT64_MAX;
    int64_t end = 0;
    for (int64_t r = 0; r < rows_.count; ++r) {
      if (rows_.begin[r] >= rows_.end[r]) continue;
      begin = smaller(begin, rows_.begin[r]);
      end = larger(end, rows_.end[r]);
    }
    if (end == 0 && !problem_.first && !problem_.last) return;
    load_state();
    if (end > 0) pack_queries();
    // Tiles begin at the same keys for every block, so that a row's bits do not depend on its
    // neighbours.
    for (int64_t start = begin / tile_keys_ * tile_keys_; start < end; start += tile_keys_) {
      if (problem_.stop.ask(problem_.stop.context)) return;
      add_key_tile(start, smaller(tile_keys_, end - start));
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

  void add_key_tile(int64_t start, int64_t keys) {
    const E* k_rows = static_cast<const E*>(problem_.k) + start * problem_.k_stride;
    const E* v_rows = static_cast<const E*>(problem_.v) + start * problem_.v_stride;
    Tile k = convert_tile(k_rows, problem_.k_stride, keys, 1, k_tile_);
    Tile v = convert_tile(v_rows, problem_.v_stride, keys, kWidth, v_tile_);
    for (int64_t first = 0; first < rows_.count; first += kPanel) {
      add_key_tile_to_panel(first, smaller(kPanel, rows_.count - first), start, keys, k, v);
    }
  }

  struct Tile {
    const T* rows;
    int64_t stride;
  };

  // The keys of a tile that each row of a panel sees.
  struct Seen {
    typename S::IntScalar begin[kPanel];
    typename S::IntScalar end[kPanel];
  };

  // Rows with a large stride are copied too, because they would miss the TLB and share cache sets.
  // Long rows are copied if vectors are narrow, because more panels then read a tile.
  Tile convert_tile(const E* rows, int64_t stride, int64_t keys, int64_t multiple, T* tile) {
    if constexpr (kDirect) {
      const bool close = stride >= 0 && stride <= 2 * dim_;
      const bool few_passes = kVectorBytes == 64 || dim_ * int64_t(sizeof(T)) <= 256;
      if (close && few_passes && dim_ % multiple == 0) return {rows, stride};
    }
    for (int64_t j = 0; j < keys; ++j) load_row(rows + j * stride, tile + j * tile_stride_, dim_);
    return {tile, tile_stride_};
  }

  void add_key_tile_to_panel(int64_t first, int64_t rows, int64_t start, int64_t tile_keys, Tile k,
                             Tile v) {
    Seen seen;
    KeyRange some = {tile_keys, 0};
    KeyRange all = {0, tile_keys};
    for (int64_t r = 0; r < kPanel; ++r) {
      // Lanes without a row repeat the last row; their results are discarded.
      const int64_t row = first + smaller(r, rows - 1);
      const int64_t end = larger(0, smaller(tile_keys, rows_.end[row] - start));
      const int64_t begin = smaller(end, larger(0, rows_.begin[row] - start));
      seen.begin[r] = static_cast<typename S::IntScalar>(begin);
      seen.end[r] = static_cast<typename S::IntScalar>(end);
      all = {larger(all.begin, begin), smaller(all.end, end)};
      if (begin < end) some = {smaller(some.begin, begin), larger(some.end, end)};
    }
    if (some.end == 0) return;
    all.begin = larger(some.begin, smaller(all.begin, some.end));
    all.end = larger(all.begin, all.end);
    const int vectors = static_cast<int>((rows + kWidth - 1) / kWidth);
    score_panel(vectors, q_ + first * dim_, k.rows + some.begin * k.stride, k.stride, dim_,
                some.end - some.begin, scores_ + some.begin * kPanel);
    for (int64_t lane = 0; lane < vectors * kWidth; lane += kWidth) {
      softmax_vector<T>(scores_ + lane, some, all, seen.begin + lane, seen.end + lane, log2_scale_,
                        m_ + first + lane, l_ + first + lane, alpha_ + lane);
    }
    int64_t r = 0;
    for (; r + kValueRows <= rows; r += kValueRows) add_values<kValueRows>(first, r, seen, v);
    if constexpr (kValueRows > 4) {
      for (; r + 4 <= rows; r += 4) add_values<4>(first, r, seen, v);
    }
    for (; r + 2 <= rows; r += 2) add_values<2>(first, r, seen, v);
    for (; r < rows; ++r) add_values<1>(first, r, seen, v);
  }

  template <int ROWS>
  void add_values(int64_t first, int64_t r, const Seen& seen, Tile v) {
    T* out = out_ + (first + r) * padded_dim_;
    KeyRange some = {seen.begin[r], seen.end[r]};
    KeyRange all = some;
    for (int i = 1; i < ROWS; ++i) {
      some = {smaller(some.begin, seen.begin[r + i]), larger(some.end, seen.end[r + i])};
      all = {larger(all.begin, seen.begin[r + i]), smaller(all.end, seen.end[r + i])};
    }
    if (some.begin == all.begin && some.end == all.end) {
      if (all.begin < all.end) add_keys<ROWS>(r, all, v, nullptr, alpha_ + r, out);
      return;
    }
    // On a diagonal, rows process the keys that not all of them see one by one, in the order of the
    // keys. So no row reads a V row that it does not see (0 * NaN is NaN).
    if (all.begin >= all.end) {
      for (int i = 0; i < ROWS; ++i) {
        const KeyRange own = {seen.begin[r + i], seen.end[r + i]};
        if (own.begin < own.end)
          add_keys<1>(r + i, own, v, nullptr, alpha_ + r + i, out + i * padded_dim_);
      }
      return;
    }
    const T* before = nullptr;
    if (some.begin < all.begin) {
      for (int i = 0; i < ROWS; ++i)
        add_keys<1>(r + i, {seen.begin[r + i], all.begin}, v, nullptr, nullptr,
                    partial_ + i * padded_dim_);
      before = partial_;
    }
    add_keys<ROWS>(r, all, v, before, nullptr, partial_);
    for (int i = 0; i < ROWS; ++i)
      add_keys<1>(r + i, {all.end, seen.end[r + i]}, v, partial_ + i * padded_dim_, alpha_ + r + i,
                  out + i * padded_dim_);
  }

  // value_rows() over the keys of a range, which may be empty.
  template <int ROWS>
  BARACUDA_INLINE void add_keys(int64_t r, KeyRange keys, Tile v, const T* start, const T* alpha,
                                T* out) {
    value_rows<ROWS>(scores_ + keys.begin * kPanel + r, v.rows + keys.begin * v.stride, v.stride,
                     keys.end - keys.begin, start, alpha, out, padded_dim_);
  }

  void write_output() {
    for (int64_t r = 0; r < rows_.count; ++r) {
      T* out = out_ + r * padded_dim_;
      // Only an empty row has l == 0; its out is 0.
      const bool undefined = l_[r] == 0 && is_undefined_sum(l_[r]);
      const T divisor = row_divisor(l_[r], undefined);
      for (int64_t c = 0; c < padded_dim_; c += kWidth) {
        store(out + c, load<V>(out + c) / splat(divisor));
      }
      store_row(out, static_cast<E*>(rows_.y[r]), dim_);
      if (problem_.lse != nullptr) {
        write_lse(rows_.row[r], log_sum_exp(double(m_[r]), magnitude_, double(l_[r]),
                                            empty_row<double>(undefined)));
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
