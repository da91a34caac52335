#include "attention/forward/step_mask.h"
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {
namespace {

// Tiles of keys. Whole calls ask for scores ahead, which leaves no registers for the widest tile;
// steps of a ring do not: their code is read cold, and there is less of it so.
constexpr int narrow = 128, wide_whole = 144, wide_step = 176, wide_step_last = 112;

int64_t filled(int64_t keys, int tile, int last) {
  const int64_t rest = keys % tile;
  return keys - rest + (rest == 0 ? 0 : rest <= last ? last : tile);
}

// A wide tile has fewer waits per key and takes some percent less time for it. That is lost on a
// diagonal, where more keys than that are added to fill the last tile, and in steps of few keys,
// whose first and last tiles weigh more. What runs beside a step must not matter here: the tiles
// give different bits, and a ring gives the same ones over any transport.
bool prefers_wide(const StepMask& mask, bool whole) {
  constexpr int64_t few_keys = 1536;
  if (mask.has_diagonal || (!whole && mask.keys < few_keys)) return false;
  const int64_t filled_narrow = filled(mask.keys, narrow, narrow);
  const int64_t filled_wide = whole ? filled(mask.keys, wide_whole, wide_whole)
                                    : filled(mask.keys, wide_step, wide_step_last);
  return filled_wide - filled_narrow <= filled_narrow / 40;
}

template <typename Element>
struct Tiles {
  using Narrow = Config<Element, 128, narrow, 2, false, narrow, true>;
  using WideWhole = Config<Element, 128, wide_whole, 2, false, wide_whole, true, Calls::whole>;
  using WideStep =
      Config<Element, 128, wide_step, 2, false, wide_step_last, false, Calls::ring_steps>;

  static int32_t load() {
    int32_t status = load_kernels<Narrow>();
    if (status == BARACUDA_OK) status = load_kernels<WideWhole>();
    return status == BARACUDA_OK ? load_kernels<WideStep>() : status;
  }
  static int32_t launch(const StepParams& p, cudaStream_t stream) {
    return with_tile(p, [&](auto tile, const StepMask& mask) {
      return launch_kernel<decltype(tile)>(p, mask, stream);
    });
  }
  static int32_t grid(const StepParams& p, StepGrid* grid) {
    return with_tile(p, [&](auto tile, const StepMask& mask) {
      return find_grid<decltype(tile)>(p, mask, grid);
    });
  }

 private:
  template <typename F>
  static int32_t with_tile(const StepParams& p, F f) {
    constexpr uint32_t whole_call = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
    const StepMask mask = step_mask(p);
    const bool whole = (p.flags & whole_call) == whole_call;
    if (!prefers_wide(mask, whole)) return f(Narrow{}, mask);
    return whole ? f(WideWhole{}, mask) : f(WideStep{}, mask);
  }
};

}  // namespace

Variant variant_d128(const StepParams& p) {
  return p.element == BARACUDA_BF16
             ? Variant{Tiles<__nv_bfloat16>::load, Tiles<__nv_bfloat16>::launch,
                       Tiles<__nv_bfloat16>::grid}
             : Variant{Tiles<__half>::load, Tiles<__half>::launch, Tiles<__half>::grid};
}

}  // namespace baracuda::sm90
