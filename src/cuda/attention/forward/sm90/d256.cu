// The instantiations of the sm90a kernel for head_dim 256, and the choice among them. config.h
// explains their parameters.
#include "attention/forward/step_mask.h"
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {
namespace {

// True if a step is faster in clusters of two blocks: one of many rows and keys without a diagonal. A
// last query tile without another leaves a block idle, which matters less the more query tiles there
// are. Steps beside NCCL do without, as at head_dim 128 (d128.cu). See
// docs/kernel-log/forward-sm90a.md, "Clusters that share K and V, in continuous use".
bool pays_in_pairs(const StepParams& p, const StepMask& mask) {
  constexpr int64_t many_rows = 2048, many_rows_with_odd_tile = 4096, many_keys = 2048;
  constexpr int64_t tile = 128;  // query rows of a block
  if (!is_whole(p) && p.sm_margin > 0) return false;
  if (mask.has_diagonal || mask.keys < many_keys) return false;
  const int64_t rows = p.query_len - mask.first_row;
  const bool even = (rows + tile - 1) / tile % 2 == 0;
  return rows >= (even ? many_rows : many_rows_with_odd_tile);
}

template <typename Element>
struct Tiles {
  using Single = Config<Element, 256, 80, 2, false>;
  using Pair = Config<Element, 256, 80, 2, false, 80, false, Served::any_step, 2>;

  static int32_t load() {
    const int32_t status = load_kernels<Single>();
    return status == BARACUDA_OK ? load_kernels<Pair>() : status;
  }
  static int32_t launch(const StepParams& p, cudaStream_t stream) {
    const StepMask mask = step_mask(p);
    return pays_in_pairs(p, mask) ? launch_kernel<Pair>(p, mask, stream)
                                  : launch_kernel<Single>(p, mask, stream);
  }
  static int32_t grid(const StepParams& p, StepGrid* grid) {
    const StepMask mask = step_mask(p);
    return pays_in_pairs(p, mask) ? find_grid<Pair>(p, mask, grid)
                                  : find_grid<Single>(p, mask, grid);
  }
};

}  // namespace

Variant variant_d256(const StepParams& p) {
  return p.element == BARACUDA_BF16
             ? Variant{Tiles<__nv_bfloat16>::load, Tiles<__nv_bfloat16>::launch,
                       Tiles<__nv_bfloat16>::grid}
             : Variant{Tiles<__half>::load, Tiles<__half>::launch, Tiles<__half>::grid};
}

}  // namespace baracuda::sm90
