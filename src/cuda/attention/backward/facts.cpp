#include "attention/backward/facts.h"

#include "baracuda/attention_backward.h"

namespace baracuda {
namespace {

// As in the forward, but with sm90a's limits of query rows and tiles: the kernels before and after
// a step count them in the same way.
const FamilyFacts& sm80_facts() {
  static const FamilyFacts facts = [] {
    FamilyFacts made = *find_facts(BARACUDA_ATTENTION_SM80);
    made.max_query_len = find_facts(BARACUDA_ATTENTION_SM90A)->max_query_len;
    made.max_tiles = find_facts(BARACUDA_ATTENTION_SM90A)->max_tiles;
    return made;
  }();
  return facts;
}

// keys: the least number of keys of a key tile.
std::string refused_key_tiles(const StepParams& p, int64_t keys) {
  return refused_tiles(*find_facts(BARACUDA_ATTENTION_SM90A), "batch, kv_heads, key_len", "key",
                       p.batch, p.kv_heads, p.key_len, keys);
}

// The kernel divides lse by scale in float32. 2^127, which hides a row, must stay larger than that.
std::string refused_by_sm90a(const StepParams& p) {
  if (p.scale < 0x1p-80)
    return "scale: got " + shortest(p.scale) + ", must be at least 2**-80";
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
  if (facts == nullptr) return "direction: got BACKWARD, must be FORWARD";
  std::string reason = refusal(*facts, p);
  if (!reason.empty()) return reason;
  switch (backward_family(kernel)) {
    case BARACUDA_ATTENTION_SM80: return refused_key_tiles(p, 32);
    case BARACUDA_ATTENTION_SM90A: return refused_by_sm90a(p);
    default: return "";
  }
}

}  // namespace baracuda
