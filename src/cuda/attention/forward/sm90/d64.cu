// The instantiations of the sm90a kernel for head_dim 64. config.h explains their parameters.
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {

Variant variant_d64(const StepParams& p) {
  return p.element == BARACUDA_BF16 ? make_variant<Config<__nv_bfloat16, 64, 128, 3, true>>()
                                    : make_variant<Config<__half, 64, 128, 3, true>>();
}

}  // namespace baracuda::sm90
