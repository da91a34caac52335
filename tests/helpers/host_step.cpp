// The host family's step without the check of what the family serves, for masks that no plan asks
// for yet, and the family's thread pool. Compiled from the sources, for the baseline instruction
// set alone.
#include <atomic>
#include <chrono>
#include <thread>

#include "attention/forward/family.h"
#include "attention/forward/host/block.h"
#include "attention/forward/host/thread_pool.h"
#include "common/interrupt.h"

const baracuda::host::IsaKernels& baracuda::host::isa_kernels() { return kBaselineKernels; }
int32_t baracuda::host::check_isa_variable(const char*) { return 0; }

extern "C" int32_t host_step(const baracuda_attention_step_params* params) {
  return baracuda::host_family().step(*params, nullptr);
}

namespace {

struct Slow {
  std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> helped{false};
};

// On the caller's thread: ends once the other thread has its item. On the other thread: lasts until
// it is told to stop, at most 20 s.
void slow_item(void* context, int64_t, void*, const baracuda::host::StopCheck& stop) {
  Slow& slow = *static_cast<Slow*>(context);
  const bool helps = std::this_thread::get_id() != slow.caller;
  if (helps) slow.helped = true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end && !(helps ? stop.ask(stop.context) : slow.helped.load())) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

// Two items on two threads, of which the caller's ends first. `flag` ends the call.
extern "C" int32_t host_slow_helper(const int32_t* flag) {
  baracuda::host::set_thread_count(2);
  const baracuda::StopScope scope(flag);
  Slow slow;
  return baracuda::host::parallel_for(2, slow_item, &slow, "host_slow_helper");
}
