// The messages and sums of a call's rounds, for callers of the C ABI.
#include "ring/rounds.h"

#include "baracuda/ring.h"

namespace {

// False for a call without what Rounds reads. Such a call has no rounds.
bool has_rounds(const baracuda_ring_call* call) {
  return call != nullptr && call->endpoint != nullptr && call->program != nullptr &&
         (call->payload_count == 0 || call->payloads != nullptr);
}

}  // namespace

extern "C" int32_t baracuda_ring_has_exchange(const baracuda_ring_call* call, int32_t number) {
  return has_rounds(call) && baracuda::Rounds(*call).has_messages(number) ? 1 : 0;
}

extern "C" void baracuda_ring_messages(const baracuda_ring_call* call, int32_t number,
                                       baracuda_ring_round* round) {
  if (round == nullptr) return;
  *round = baracuda_ring_round{};
  if (has_rounds(call) && call->hops != nullptr) baracuda::Rounds(*call).fill(number, round);
}

extern "C" int32_t baracuda_ring_has_sum(const baracuda_ring_call* call, int32_t number) {
  return has_rounds(call) && baracuda::Rounds(*call).has_sum(number) ? 1 : 0;
}
