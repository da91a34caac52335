#include "attention/backward/facts.h"

#include "baracuda/attention_backward.h"

namespace baracuda {
namespace {

// The forward's, but that rows and their tiles, over all of which other kernels go before and after
// a step, are counted as in sm90a.
const FamilyFacts& sm80_facts() {
  static const FamilyFacts facts = [] {
    FamilyFacts made = *find_facts(BARACUDA_ATTENTION_SM80);
    made.max_query_len = find_facts(BARACUDA_ATTENTION_SM90A)->max_query_len;
    made.max_tiles = find_facts(BARACUDA_ATTENTION_SM90A)->max_tiles;
    return made;
  }();
  return facts;
}

// Of so many keys each, or more.
std::string refused_key_tiles(const StepParams& p, int64_t keys) {
  int64_t tiles = 0;
  if (__builtin_mul_overflow(p.batch, p.kv_heads, &tiles) ||
      __builtin_mul_overflow(tiles, p.key_len / keys + 1, &tiles) ||
      tiles > find_facts(BARACUDA_ATTENTION_SM90A)->max_tiles) {
    return "its key tiles are more than it counts in 32 bits";
  }
  return "";
}

// lse / scale and a row's 2^127 that hides it are taken off scores in float32.
std::string refused_by_sm90a(const StepParams& p) {
  if (p.scale < 0x1p-80) return "scale is below 2**-80, and it divides by it in float32";
  return refused_key_tiles(p, 128);
}

}  // namespace

int32_t backward_family(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_BACKWARD_SM80_ORDERED: return BARACUDA_ATTENTION_SM80;
    case BARACUDA_BACKWARD_SM90A_ORDERED: return BARACUDA_ATTENTION_SM90A;
    default: return kernel;
  }
}

const FamilyFacts* find_backward_facts(int32_t kernel) {
  const int32_t family = backward_family(kernel);
  return family == BARACUDA_ATTENTION_SM80 ? &sm80_facts() : find_facts(family);
}

bool is_backward_ordered(int32_t kernel) {
  return kernel != BARACUDA_ATTENTION_SM80 && kernel != BARACUDA_ATTENTION_SM90A;
}

std::string backward_refusal(int32_t kernel, const StepParams& p) {
  const FamilyFacts* facts = find_backward_facts(kernel);
  if (facts == nullptr) return "has no backward kernel";
  std::string reason = refusal(*facts, p);
  if (!reason.empty()) return reason;
  switch (backward_family(kernel)) {
    case BARACUDA_ATTENTION_SM80: return refused_key_tiles(p, 32);
    case BARACUDA_ATTENTION_SM90A: return refused_by_sm90a(p);
    default: return "";
  }
}

}  // namespace baracuda
