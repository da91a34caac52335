#include "attention/backward/facts.h"

namespace baracuda {
namespace {

// The forward's, but for the head_dims that have kernels.
const FamilyFacts& sm90a_facts() {
  static const FamilyFacts facts = [] {
    FamilyFacts made = *find_facts(BARACUDA_ATTENTION_SM90A);
    made.max_head_dim = 128;
    made.head_dims[0] = 64;
    made.head_dims[1] = 128;
    made.head_dims[2] = 0;
    return made;
  }();
  return facts;
}

// The forward's, but that rows and their tiles, over all of which other kernels go before and after a
// step, are counted as in sm90a.
const FamilyFacts& sm80_facts() {
  static const FamilyFacts facts = [] {
    FamilyFacts made = *find_facts(BARACUDA_ATTENTION_SM80);
    made.max_query_len = sm90a_facts().max_query_len;
    made.max_tiles = sm90a_facts().max_tiles;
    return made;
  }();
  return facts;
}

// Of so many keys each, or more.
std::string refused_key_tiles(const StepParams& p, int64_t keys) {
  int64_t tiles = 0;
  if (__builtin_mul_overflow(p.batch, p.kv_heads, &tiles) ||
      __builtin_mul_overflow(tiles, p.key_len / keys + 1, &tiles) ||
      tiles > sm90a_facts().max_tiles) {
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

const FamilyFacts* find_backward_facts(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_ATTENTION_HOST:
    case BARACUDA_ATTENTION_SIMT: return find_facts(kernel);
    case BARACUDA_ATTENTION_SM80: return &sm80_facts();
    case BARACUDA_ATTENTION_SM90A: return &sm90a_facts();
    default: return nullptr;
  }
}

bool is_backward_ordered(int32_t kernel) {
  return kernel != BARACUDA_ATTENTION_SM80 && kernel != BARACUDA_ATTENTION_SM90A;
}

std::string backward_refusal(int32_t kernel, const StepParams& p) {
  const FamilyFacts* facts = find_backward_facts(kernel);
  if (facts == nullptr) return "has no backward kernel";
  std::string reason = refusal(*facts, p);
  if (reason.empty() && kernel == BARACUDA_ATTENTION_SM80) reason = refused_key_tiles(p, 32);
  if (reason.empty() && kernel == BARACUDA_ATTENTION_SM90A) reason = refused_by_sm90a(p);
  return reason;
}

}  // namespace baracuda
