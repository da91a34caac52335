#include "attention/forward/step_mask.h"
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {
namespace {

// Tiles of keys. Whole calls ask for scores ahead, which leaves no registers for the widest tile.
// Steps of a ring do not, whose code is read cold: there is less of it so. Nor do calls of few keys,
// which lose up to 6 % by it (512 keys without a mask).
constexpr int narrow = 128, wide_ahead = 144, wide = 176, wide_last = 112;

int64_t filled(int64_t keys, int tile, int last) {
  const int64_t rest = keys % tile;
  return keys - rest + (rest == 0 ? 0 : rest <= last ? last : tile);
}

// A wide tile has fewer waits per key and takes some percent less time for it. That is lost on a
// diagonal, where more keys than that are added to fill the last tile, and in steps of few keys,
// whose first and last tiles weigh more. What runs beside a step must not matter here: the tiles
// give different bits, and a ring gives the same ones over any transport.
bool prefers_wide(const StepMask& mask, bool whole, int tile, int last) {
  constexpr int64_t few_keys = 1536;
  if (mask.has_diagonal || (!whole && mask.keys < few_keys)) return false;
  const int64_t filled_narrow = filled(mask.keys, narrow, narrow);
  return filled(mask.keys, tile, last) - filled_narrow <= filled_narrow / 40;
}

template <typename Element>
struct Tiles {
  // Narrow's whole calls ask for scores ahead; Short is the same tile where they do not.
  using Narrow = Config<Element, 128, narrow, 2, false, narrow, true>;
  using Short = Config<Element, 128, narrow, 2, false, narrow, false, true>;
  using Wide = Config<Element, 128, wide, 2, false, wide_last>;
  using WideAhead = Config<Element, 128, wide_ahead, 2, false, wide_ahead, true, true>;

  static int32_t load() {
    int32_t status = load_kernels<Narrow>();
    if (status == BARACUDA_OK) status = load_kernels<Short>();
    if (status == BARACUDA_OK) status = load_kernels<Wide>();
    return status == BARACUDA_OK ? load_kernels<WideAhead>() : status;
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
    constexpr int64_t few_keys = 640;
    const StepMask mask = step_mask(p);
    const bool whole = (p.flags & whole_call) == whole_call;
    if (whole && p.key_len > few_keys)
      return prefers_wide(mask, true, wide_ahead, wide_ahead) ? f(WideAhead{}, mask)
                                                              : f(Narrow{}, mask);
    if (prefers_wide(mask, whole, wide, wide_last)) return f(Wide{}, mask);
    return whole ? f(Short{}, mask) : f(Narrow{}, mask);
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
