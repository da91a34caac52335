#include "attention/backward/sm80/launch.cuh"
#include "attention/backward/sm80/variant.h"

namespace baracuda::sm80::backward {
namespace {

template <typename Element>
using Tile = Config<Element, 64, 4, 32, 64, 2, false, 32, 2, true>;

}  // namespace

Variants variants_d64_ordered(bool is_bf16) {
  return is_bf16 ? make_variants<Tile<__nv_bfloat16>, Tile<__nv_bfloat16>>()
                 : make_variants<Tile<__half>, Tile<__half>>();
}

}  // namespace baracuda::sm80::backward
