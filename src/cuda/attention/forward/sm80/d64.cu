#include "attention/forward/sm80/launch.cuh"

namespace baracuda::sm80 {

Variant variant_d64(bool is_bf16) {
  return is_bf16 ? make_variant<Config<__nv_bfloat16, 64, 128, 128, 4, 2, false>>()
                 : make_variant<Config<__half, 64, 128, 128, 4, 2, false>>();
}

}  // namespace baracuda::sm80
