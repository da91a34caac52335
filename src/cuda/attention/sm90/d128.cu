#include "attention/sm90/launch.cuh"

namespace baracuda::sm90 {

// The wider tile is faster, but wastes more of the products on a diagonal.
Variant variant_d128(bool is_bf16, bool causal) {
  if (causal) {
    return is_bf16 ? make_variant<Config<__nv_bfloat16, 128, 160, 2, 6>>()
                   : make_variant<Config<__half, 128, 160, 2, 6>>();
  }
  return is_bf16 ? make_variant<Config<__nv_bfloat16, 128, 176, 2, 6>>()
                 : make_variant<Config<__half, 128, 176, 2, 6>>();
}

}  // namespace baracuda::sm90
