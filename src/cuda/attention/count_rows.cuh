// Counts the rows of a shard by their positions, in code that has few registers.
#pragma once

#include <stdint.h>

#include "common/divisor.h"

namespace baracuda {

// As rows_at_or_before(), without a 64-bit division, for which a producer warp has too few
// registers. The quotient is below count, which is at most 2^30. known: divides by stride; its
// divisor is 0 if the host does not know the stride, or if the stride is 2^31 or more.
__device__ __forceinline__ int count_at_or_before(int64_t first, int64_t stride,
                                                  const Divisor& known, int count, int64_t pos) {
  if (count <= 0 || pos < first) return 0;
  uint64_t rest = pos - first;
  if (stride == 1) return rest < count ? static_cast<int>(rest) + 1 : count;
  if (rest >= static_cast<uint64_t>(stride) * count) return count;
  if (known.divisor != 0 && rest >> 31 == 0) return known.quotient(static_cast<int>(rest)) + 1;
  int quotient = 0;
#pragma unroll 1
  for (int bit = 29; bit >= 0; --bit) {
    if (rest >> bit < static_cast<uint64_t>(stride)) continue;
    rest -= static_cast<uint64_t>(stride) << bit;
    quotient |= 1 << bit;
  }
  return quotient < count ? quotient + 1 : count;
}

}  // namespace baracuda
