#include "attention/backward/sm90/launch.cuh"
#include "attention/backward/sm90/variant.h"

namespace baracuda::sm90::backward {
namespace {

// Where a group's heads are many more bytes than L2 has, a pair's half as many additions win.
template <typename Element>
BackwardFamily of_element(const StepParams& problem) {
  using Tile = Config<Element, 128, 1, 2>;
  using Pair = Config<Element, 128, 1, 4, true>;
  return problem.heads > problem.kv_heads ? make_variant<Pair>() : make_variant<Tile>();
}

}  // namespace

BackwardFamily variant_d128(const StepParams& problem) {
  return problem.element == BARACUDA_BF16 ? of_element<__nv_bfloat16>(problem)
                                          : of_element<__half>(problem);
}

}  // namespace baracuda::sm90::backward
