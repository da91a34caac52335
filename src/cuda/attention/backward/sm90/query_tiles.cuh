// The query tiles of a key tile, in the order in which a block takes them.
#pragma once

#include <type_traits>

namespace baracuda::sm90::backward {

// Whether the first addition to a tile of dQ stores, see first_stores.cuh: where the copy engine adds whole
// tiles, in any order.
template <typename C>
constexpr bool stores_first = C::dq_stages > 0 && !C::ordered;

struct QueryTiles {
  int begin, step;

  __device__ __forceinline__ int at(int i) const { return begin + i * step; }
};

// From the start-th on; those before it come last.
struct RotatedQueryTiles {
  int begin, step, count, start;

  __device__ __forceinline__ int at(int i) const {
    i += start;
    if (i >= count) i -= count;
    return begin + i * step;
  }
};

// Where blocks might wait for a first addition, few come to a query tile at a time.
template <typename C>
constexpr bool rotates = stores_first<C>;

template <typename C>
using QueryTilesOf = std::conditional_t<rotates<C>, RotatedQueryTiles, QueryTiles>;

}  // namespace baracuda::sm90::backward
