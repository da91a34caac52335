// Division by a number that is known at launch: a product and a shift replace about forty dependent
// instructions. (Granlund and Montgomery, "Division by invariant integers using multiplication",
// 1994.)
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace baracuda {

struct Divisor {
  uint32_t divisor;
  uint32_t multiplier;  // 2^(31 + shift) / divisor, rounded up
  uint32_t shift;       // 2^shift is divisor or more

  // n must not be negative.
  BARACUDA_HD constexpr int quotient(int n) const {
    const uint64_t product = uint64_t{2u * static_cast<uint32_t>(n)} * multiplier;
    return static_cast<int>(static_cast<uint32_t>(product >> 32) >> shift);
  }
  BARACUDA_HD constexpr int remainder(int n) const {
    return n - quotient(n) * static_cast<int>(divisor);
  }
};

// 1 <= divisor < 2^31.
constexpr Divisor make_divisor(int64_t divisor) {
  uint32_t shift = 0;
  while (int64_t{1} << shift < divisor) ++shift;
  const uint64_t power = uint64_t{1} << (31 + shift);
  return {static_cast<uint32_t>(divisor),
          static_cast<uint32_t>((power + static_cast<uint64_t>(divisor) - 1) /
                                static_cast<uint64_t>(divisor)),
          shift};
}

namespace divisor_checks {
constexpr bool divides(int64_t divisor, int n) {
  return make_divisor(divisor).quotient(n) == n / divisor &&
         make_divisor(divisor).remainder(n) == n % divisor;
}
constexpr bool divides(int64_t divisor) {
  constexpr int top = 0x7fffffff;
  const int last = static_cast<int>(top / divisor * divisor);
  return divides(divisor, 0) && divides(divisor, static_cast<int>(divisor - 1)) &&
         divides(divisor, static_cast<int>(divisor)) && divides(divisor, last - 1) &&
         divides(divisor, last) && divides(divisor, top);
}
static_assert(divides(1) && divides(2) && divides(3) && divides(5) && divides(7) && divides(12) &&
              divides(641) && divides(65535) && divides(65536) && divides(1000003) &&
              divides(0x40000000) && divides(0x40000001) && divides(0x7fffffff));
}  // namespace divisor_checks

}  // namespace baracuda
