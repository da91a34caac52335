#include "attention/forward/sm80/launch.cuh"

namespace baracuda::sm80 {

Variant variant_d256(bool is_bf16) {
  return is_bf16 ? make_variant<Config<__nv_bfloat16, 256, 64, 64, 4, 2, false>>()
                 : make_variant<Config<__half, 256, 64, 64, 4, 2, false>>();
}

}  // namespace baracuda::sm80
