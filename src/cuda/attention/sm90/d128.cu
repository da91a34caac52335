#include "attention/sm90/launch.cuh"
#include "common/position_map.h"

namespace baracuda::sm90 {
namespace {

constexpr int narrow = 128, wide = 176, wide_last = 112;

// Whether rows of a tile may see different keys. Else all rows of a chunk do, or all of each half.
bool has_diagonal(const StepParams& p) {
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0) return false;
  if (p.device_maps != nullptr) return true;
  const auto visible = [&p](int64_t row) {
    return visible_keys(p.k_map, p.key_len, position(p.q_map, row));
  };
  const auto differs = [&visible](int64_t begin, int64_t end) {
    return begin < end && visible(begin) != visible(end - 1);
  };
  const int64_t split = p.q_map.split < p.query_len ? p.q_map.split : p.query_len;
  return differs(0, split) || differs(split, p.query_len);
}

// The wide tile has fewer waits per key and takes 6 % less time for it. That is lost on a diagonal,
// where more keys than that are added to fill the last tile, and where the state comes in and goes
// out of few keys, for it leaves no room for the state in shared memory.
bool prefers_wide(const StepParams& p) {
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  constexpr int64_t few_keys = 3072;
  if (p.query_len == 0 || has_diagonal(p)) return false;
  const int64_t keys = (p.flags & BARACUDA_STEP_CAUSAL) == 0
                           ? p.key_len
                           : visible_keys(p.k_map, p.key_len, position(p.q_map, p.query_len - 1));
  if ((p.flags & whole) != whole && keys < few_keys) return false;
  const int64_t filled_narrow = (keys + narrow - 1) / narrow * narrow;
  const int64_t rest = keys % wide;
  const int64_t filled_last = rest == 0 ? 0 : rest <= wide_last ? wide_last : wide;
  return keys - rest + filled_last - filled_narrow <= filled_narrow / 40;
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
    return prefers_wide(p) ? launch_kernel<Wide>(p, stream) : launch_kernel<Narrow>(p, stream);
  }
};

}  // namespace

Variant variant_d128(const StepParams& p) {
  return p.element == BARACUDA_BF16
             ? Variant{Both<__nv_bfloat16>::load, Both<__nv_bfloat16>::launch}
             : Variant{Both<__half>::load, Both<__half>::launch};
}

}  // namespace baracuda::sm90
