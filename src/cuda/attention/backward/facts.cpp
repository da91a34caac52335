#include "attention/backward/facts.h"

#include "baracuda/attention_backward.h"

namespace baracuda {
namespace {

// lse / scale and a row's 2^127 that hides it are taken off scores in float32.
std::string refused_by_sm90a(const StepParams& p) {
  if (p.scale < 0x1p-80) return "scale is below 2**-80, and it divides by it in float32";
  int64_t tiles = 0;
  if (__builtin_mul_overflow(p.batch, p.kv_heads, &tiles) ||
      __builtin_mul_overflow(tiles, p.key_len / 128 + 1, &tiles) ||
      tiles > find_facts(BARACUDA_ATTENTION_SM90A)->max_tiles) {
    return "its key tiles are more than it counts in 32 bits";
  }
  return "";
}

}  // namespace

int32_t backward_family(int32_t kernel) {
  return kernel == BARACUDA_BACKWARD_SM90A_ORDERED ? BARACUDA_ATTENTION_SM90A : kernel;
}

const FamilyFacts* find_backward_facts(int32_t kernel) {
  switch (backward_family(kernel)) {
    case BARACUDA_ATTENTION_HOST:
    case BARACUDA_ATTENTION_SIMT:
    case BARACUDA_ATTENTION_SM90A: return find_facts(kernel);
    default: return nullptr;
  }
}

bool is_backward_ordered(int32_t kernel) { return kernel != BARACUDA_ATTENTION_SM90A; }

std::string backward_refusal(int32_t kernel, const StepParams& p) {
  const FamilyFacts* facts = find_backward_facts(kernel);
  if (facts == nullptr) return "has no backward kernel";
  std::string reason = refusal(*facts, p);
  if (reason.empty() && backward_family(kernel) == BARACUDA_ATTENTION_SM90A)
    reason = refused_by_sm90a(p);
  return reason;
}

}  // namespace baracuda
