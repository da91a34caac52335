#include "attention/backward/sm90/launch.cuh"
#include "attention/backward/sm90/variant.h"

namespace baracuda::sm90::backward {
namespace {

// True if the first addition should store, instead of zeroing dQ before. Zeros that L2 cannot hold
// are written to memory and read again; a store first costs a test of a word at each addition. The
// choice depends only on fields that all steps of a call share.
bool is_short(const StepParams& problem) {
  constexpr int64_t more_than_l2 = int64_t{64} << 20;
  return problem.query_len <= 2048 &&
         problem.batch * problem.heads * problem.query_len > more_than_l2 / (128 * 4);
}

// All problems with grouped heads take pairs, which halve the additions. They win if the heads of a
// group have many more bytes than L2.
template <typename Element>
BackwardFamily of_element(const StepParams& problem) {
  using Tile = Config<Element, 128, 1, 2>;
  using Short = Config<Element, 128, 1, 2, false, false, true>;
  using Pair = Config<Element, 128, 1, 4, true>;
  if (problem.heads > problem.kv_heads) return make_variant<Pair>();
  return is_short(problem) ? make_variant<Short>() : make_variant<Tile>();
}

}  // namespace

BackwardFamily variant_d128(const StepParams& problem) {
  return problem.element == BARACUDA_BF16 ? of_element<__nv_bfloat16>(problem)
                                          : of_element<__half>(problem);
}

}  // namespace baracuda::sm90::backward
