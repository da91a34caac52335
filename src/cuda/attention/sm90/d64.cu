#include "attention/sm90/launch.cuh"

namespace baracuda::sm90 {

Variant variant_d64(bool is_bf16, bool) {
  return is_bf16 ? make_variant<Config<__nv_bfloat16, 64, 128, 3, true>>()
                 : make_variant<Config<__half, 64, 128, 3, true>>();
}

}  // namespace baracuda::sm90
