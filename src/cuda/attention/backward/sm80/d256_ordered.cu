#include "attention/backward/sm80/launch.cuh"
#include "attention/backward/sm80/variant.h"

namespace baracuda::sm80::backward {
namespace {

template <typename Element>
using Fast = Config<Element, 256, 8, 16, 64, 1, true, 64, 2, true>;
template <typename Element>
using Compact = Config<Element, 256, 4, 16, 32, 1, true, 32, 1, true>;

}  // namespace

Variants variants_d256_ordered(bool is_bf16) {
  return is_bf16 ? make_variants<Fast<__nv_bfloat16>, Compact<__nv_bfloat16>>()
                 : make_variants<Fast<__half>, Compact<__half>>();
}

}  // namespace baracuda::sm80::backward
