#include "attention/backward/sm90/launch.cuh"
#include "attention/backward/sm90/variant.h"

namespace baracuda::sm90::backward {
namespace {

template <typename Element>
using Tile = Config<Element, 64, 2, 4, false, true>;

}  // namespace

BackwardFamily variant_d64_ordered(const StepParams& problem) {
  return problem.element == BARACUDA_BF16 ? make_variant<Tile<__nv_bfloat16>>()
                                          : make_variant<Tile<__half>>();
}

}  // namespace baracuda::sm90::backward
