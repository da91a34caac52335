#include "attention/interval.h"
#include "attention/problem.h"
#include "common/error.h"

extern "C" int32_t baracuda_attention_visible_pairs(const baracuda_attention_step_params* params,
                                                    baracuda_visible_pairs* pairs) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_visible_pairs";
  if (pairs == nullptr)
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s", "pairs: got NULL, must be given");
  int32_t status = check_problem(call, params);
  if (status == BARACUDA_OK) status = check_maps(call, *params, params->q_map, params->k_map);
  if (status != BARACUDA_OK) return status;
  const StepParams& p = *params;
  int64_t most = 0;
  if (__builtin_mul_overflow(p.query_len, p.key_len, &most)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "query_len, key_len: got %lld and %lld, must keep their product below 2^63",
                static_cast<long long>(p.query_len), static_cast<long long>(p.key_len));
  }
  const Mask mask = mask_of(p);
  const PairCount count = count_pairs(mask, p.q_map, p.query_len, p.k_map, p.key_len);
  const Interval rows = ChunkPair(mask, p.q_map, p.query_len, p.k_map, p.key_len).live_rows();
  *pairs = {count.whole, count.cut, rows.begin, rows.end};
  return BARACUDA_OK;
}
