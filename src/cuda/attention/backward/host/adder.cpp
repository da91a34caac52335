// Adds gradients that were sent around the ring, on the host.
#include <algorithm>

#include "attention/backward/family.h"
#include "attention/backward/host/gradients.h"
#include "attention/forward/host/thread_pool.h"
#include "baracuda/element.h"
#include "common/error.h"

namespace baracuda {
namespace host {

const GradientFunctions& gradient_functions_of(int32_t element) {
#if defined(__x86_64__)
  switch (chosen_isa()) {
    case Isa::avx512: return kAvx512Gradients.of[element];
    case Isa::avx2: return kAvx2Gradients.of[element];
    case Isa::baseline: break;
  }
#endif
  return kBaselineGradients.of[element];
}

namespace {

// Number of keys of a work item.
constexpr int64_t kKeys = 256;

class Sums {
 public:
  Sums(const StepParams& problem, const GradientSum (&sums)[2])
      : p_(problem),
        sums_(sums),
        call_(gradient_functions_of(problem.element)),
        wide_bytes_(accumulator_bytes(problem.element)),
        blocks_((problem.key_len + kKeys - 1) / kKeys) {}

  int64_t items() const { return 2 * p_.batch * p_.kv_heads * blocks_; }

  void run_item(int64_t item) const {
    const int64_t heads = p_.batch * p_.kv_heads;
    const GradientSum& sum = sums_[item / (heads * blocks_)];
    const int64_t head = item / blocks_ % heads, first = item % blocks_ * kKeys;
    const int64_t keys = std::min(kKeys, p_.key_len - first);
    const int64_t out_bytes = baracuda_element_bytes(sum.element);
    const int64_t from = (head * p_.key_len + first) * p_.head_dim * wide_bytes_;
    const int64_t to = head / p_.kv_heads * sum.strides.batch +
                       head % p_.kv_heads * sum.strides.head + first * sum.strides.seq;
    SumRun run;
    run.received = static_cast<const char*>(sum.received) + from;
    run.share = static_cast<const char*>(sum.share) + from;
    run.out = static_cast<char*>(sum.out) + to * out_bytes;
    run.is_wide = out_bytes == wide_bytes_;
    const bool together = sum.strides.seq == p_.head_dim;
    run.count = together ? keys * p_.head_dim : p_.head_dim;
    for (int64_t i = 0; i < (together ? 1 : keys); ++i) {
      call_.add(run);
      run.received = static_cast<const char*>(run.received) + p_.head_dim * wide_bytes_;
      run.share = static_cast<const char*>(run.share) + p_.head_dim * wide_bytes_;
      run.out = static_cast<char*>(run.out) + sum.strides.seq * out_bytes;
    }
  }

 private:
  const StepParams& p_;
  const GradientSum (&sums_)[2];
  const GradientFunctions& call_;
  const int64_t wide_bytes_;
  const int64_t blocks_;
};

int32_t add(const StepParams& problem, const GradientSum (&sums)[2], void*) {
  Sums all(problem, sums);
  const auto task = [](void* context, int64_t item, void*, const StopCheck& stop) {
    if (!stop.ask(stop.context)) static_cast<const Sums*>(context)->run_item(item);
  };
  constexpr const char* call = "add gradients";
  const int32_t status = parallel_for(all.items(), task, &all, call);
  if (status != BARACUDA_OUT_OF_MEMORY) return status;
  return fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for %lld bytes of scratch",
              static_cast<long long>(kScratchBytes));
}

int32_t load() { return BARACUDA_OK; }

}  // namespace
}  // namespace host

const GradientAdder& host_gradient_adder() {
  static constexpr GradientAdder adder = {host::load, host::add};
  return adder;
}

}  // namespace baracuda
