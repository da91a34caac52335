#include "attention/forward/step_mask.h"
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {
namespace {

constexpr int narrow = 128, wide = 176, wide_last = 112;

// The wide tile has fewer waits per key and takes 6 % less time for it. That is lost on a diagonal,
// where more keys than that are added to fill the last tile, and in steps of few keys, whose first
// and last tiles weigh more. What runs beside a step must not matter here: the two tiles give
// different bits, and a ring gives the same ones over any transport.
bool prefers_wide(const StepParams& p, const StepMask& mask) {
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  constexpr int64_t few_keys = 1536;
  if (mask.has_diagonal) return false;
  if ((p.flags & whole) != whole && mask.keys < few_keys) return false;
  const int64_t filled_narrow = (mask.keys + narrow - 1) / narrow * narrow;
  const int64_t rest = mask.keys % wide;
  const int64_t filled_last = rest == 0 ? 0 : rest <= wide_last ? wide_last : wide;
  return mask.keys - rest + filled_last - filled_narrow <= filled_narrow / 40;
}

template <typename Element>
struct Both {
  using Narrow = Config<Element, 128, narrow, 2, false>;
  using Wide = Config<Element, 128, wide, 2, false, wide_last>;

  static int32_t load() {
    const int32_t status = load_kernels<Narrow>();
    return status == BARACUDA_OK ? load_kernels<Wide>() : status;
  }
  static int32_t launch(const StepParams& p, cudaStream_t stream) {
    const StepMask mask = step_mask(p);
    return prefers_wide(p, mask) ? launch_kernel<Wide>(p, mask, stream)
                                 : launch_kernel<Narrow>(p, mask, stream);
  }
  static int32_t grid(const StepParams& p, StepGrid* grid) {
    const StepMask mask = step_mask(p);
    return prefers_wide(p, mask) ? find_grid<Wide>(p, mask, grid)
                                 : find_grid<Narrow>(p, mask, grid);
  }
};

}  // namespace

Variant variant_d128(const StepParams& p) {
  return p.element == BARACUDA_BF16
             ? Variant{Both<__nv_bfloat16>::load, Both<__nv_bfloat16>::launch,
                       Both<__nv_bfloat16>::grid}
             : Variant{Both<__half>::load, Both<__half>::launch, Both<__half>::grid};
}

}  // namespace baracuda::sm90
