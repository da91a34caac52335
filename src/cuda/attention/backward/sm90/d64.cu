#include "attention/backward/sm90/key_tile_choice.h"
#include "attention/backward/sm90/launch.cuh"
#include "attention/backward/sm90/variant.h"

namespace baracuda::sm90::backward {
namespace {

template <typename Element>
BackwardFamily of_element(const StepParams& problem) {
  using Tile = Config<Element, 64, 2, 4>;
  using DoubleTile = Config<Element, 64, 1, 2, false, false, false, 2>;
  return takes_double_tiles(problem) ? make_variant<DoubleTile>() : make_variant<Tile>();
}

}  // namespace

BackwardFamily variant_d64(const StepParams& problem) {
  return problem.element == BARACUDA_BF16 ? of_element<__nv_bfloat16>(problem)
                                          : of_element<__half>(problem);
}

}  // namespace baracuda::sm90::backward
