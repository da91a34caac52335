#include "attention/forward/simt/launch.cuh"

namespace baracuda::simt {

Variant variant_f64(int64_t head_dim) {
  if (head_dim <= 64) return make_variant<Config<double, 1, 4, 2, 2>>();
  if (head_dim <= 128) return make_variant<Config<double, 2, 4, 2, 2>>();
  return make_variant<Config<double, 4, 2, 2, 2>>();
}

}  // namespace baracuda::simt
