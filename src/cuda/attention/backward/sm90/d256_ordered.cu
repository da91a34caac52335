#include "attention/backward/sm90/wide_consumer.cuh"
#include "attention/backward/sm90/wide_producer.cuh"

#include "attention/backward/sm90/launch.cuh"
#include "attention/backward/sm90/variant.h"

namespace baracuda::sm90::backward {
namespace {

template <typename Element>
using Tile = WideConfig<Element, true, true>;

}  // namespace

BackwardFamily variant_d256_ordered(const StepParams& problem) {
  return problem.element == BARACUDA_BF16 ? make_variant<Tile<__nv_bfloat16>>()
                                          : make_variant<Tile<__half>>();
}

}  // namespace baracuda::sm90::backward
