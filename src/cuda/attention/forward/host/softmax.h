// Online softmax of one tile of scores; rows lie side by side in vectors.
#pragma once

#include <stdint.h>

#include "attention/forward/host/tiles.h"

namespace baracuda {
namespace host {
namespace BARACUDA_HOST_ISA {

struct KeyRange {
  int64_t begin;
  int64_t end;
};

// Scores are kept unscaled: the largest is m, weights are 2^((score - m) * log2_scale), so any
// finite scale >= 0 works and the largest score weighs exactly 1.
//
// l becomes -0 if a row saw keys, all with the score -inf (attention/row_result.h).
//
// begin, end: the keys of this tile that each row sees. `some`: the keys that any row sees. `all`:
// the keys that every row sees; it may be empty.
template <class T>
inline void softmax_vector(T* scores, KeyRange some, KeyRange all,
                           const typename Simd<T>::IntScalar* begin,
                           const typename Simd<T>::IntScalar* end, T log2_scale, T* m, T* l,
                           T* alpha) {
  using S = Simd<T>;
  using V = typename S::Vector;
  using I = typename S::Int;
  using IntScalar = typename S::IntScalar;
  constexpr int kPanel = kPanelRows<T>;
  const V zero = {};
  const V empty = splat(-S::kInfinity);
  const V scale = splat(log2_scale);
  const I first = load<I>(begin);
  const I limit = load<I>(end);
  const auto seen = [&](int64_t j) { return (limit > IntScalar(j)) & (first <= IntScalar(j)); };

  const V m_old = load<V>(m);
  V best[4] = {m_old, m_old, m_old, m_old};
  int64_t j = some.begin;
  for (; j < all.begin; ++j) {
    const V score = load<V>(scores + j * kPanel);
    best[0] = max(seen(j) ? score : empty, best[0]);
  }
  for (; j + 4 <= all.end; j += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) best[u] = max(load<V>(scores + (j + u) * kPanel), best[u]);
  }
  for (; j < all.end; ++j) best[0] = max(load<V>(scores + j * kPanel), best[0]);
  for (; j < some.end; ++j) {  // no row begins after `all`
    const V score = load<V>(scores + j * kPanel);
    best[0] = max(limit > IntScalar(j) ? score : empty, best[0]);
  }
  const V m_new = max(max(best[0], best[1]), max(best[2], best[3]));
  const V base = m_new == empty ? zero : m_new;

  V sum = zero;
  for (j = some.begin; j < all.begin; ++j) {
    T* p = scores + j * kPanel;
    V weight = exp2_nonpositive<T>((load<V>(p) - base) * scale);
    weight = seen(j) ? weight : zero;
    store(p, weight);
    sum += weight;
  }
  for (; j < all.end; ++j) {
    T* p = scores + j * kPanel;
    const V weight = exp2_nonpositive<T>((load<V>(p) - base) * scale);
    store(p, weight);
    sum += weight;
  }
  for (; j < some.end; ++j) {
    T* p = scores + j * kPanel;
    V weight = exp2_nonpositive<T>((load<V>(p) - base) * scale);
    weight = limit > IntScalar(j) ? weight : zero;
    store(p, weight);
    sum += weight;
  }

  const V l_old = load<V>(l);
  V factor = exp2_nonpositive<T>((m_old - m_new) * scale);
  factor = m_old == empty ? zero : factor;
  V l_new = fma(l_old, factor, sum);
  const I saw_only_infinities =
      (m_new == empty) & (l_new == zero) & ((limit > first) | (I(l_old) < IntScalar(0)));
  l_new = saw_only_infinities ? -zero : l_new;
  store(m, m_new);
  store(l, l_new);
  store(alpha, factor);
}

}  // namespace BARACUDA_HOST_ISA
}  // namespace host
}  // namespace baracuda
