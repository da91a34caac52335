// The messages and sums of a call's rounds, for callers of the C ABI.
#include "ring/rounds.h"

#include "baracuda/ring.h"

extern "C" int32_t baracuda_ring_has_exchange(const baracuda_ring_call* call, int32_t number) {
  return baracuda::Rounds(*call).has_messages(number) ? 1 : 0;
}

extern "C" void baracuda_ring_messages(const baracuda_ring_call* call, int32_t number,
                                       baracuda_ring_round* round) {
  *round = baracuda_ring_round{};
  baracuda::Rounds(*call).fill(number, round);
}

extern "C" int32_t baracuda_ring_has_sum(const baracuda_ring_call* call, int32_t number) {
  return baracuda::Rounds(*call).has_sum(number) ? 1 : 0;
}
