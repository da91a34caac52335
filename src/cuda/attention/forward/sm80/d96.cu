#include "attention/forward/sm80/launch.cuh"

namespace baracuda::sm80 {

Variant variant_d96(bool is_bf16) {
  return is_bf16 ? make_variant<Config<__nv_bfloat16, 96, 128, 64, 4, 2, true>>()
                 : make_variant<Config<__half, 96, 128, 64, 4, 2, true>>();
}

}  // namespace baracuda::sm80
