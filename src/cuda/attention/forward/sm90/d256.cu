// The instantiations of the sm90a kernel for head_dim 256. config.h explains their parameters.
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {

Variant variant_d256(const StepParams& p) {
  return p.element == BARACUDA_BF16 ? make_variant<Config<__nv_bfloat16, 256, 80, 2, false>>()
                                    : make_variant<Config<__half, 256, 80, 2, false>>();
}

}  // namespace baracuda::sm90
