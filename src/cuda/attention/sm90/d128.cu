#include "attention/sm90/launch.cuh"

namespace baracuda::sm90 {

// The wider tile has fewer waits per key, but wastes more of the products on a diagonal.
Variant variant_d128(bool is_bf16, bool causal) {
  if (causal) {
    return is_bf16 ? make_variant<Config<__nv_bfloat16, 128, 128, 2, false>>()
                   : make_variant<Config<__half, 128, 128, 2, false>>();
  }
  return is_bf16 ? make_variant<Config<__nv_bfloat16, 128, 176, 2, false>>()
                 : make_variant<Config<__half, 128, 176, 2, false>>();
}

}  // namespace baracuda::sm90
