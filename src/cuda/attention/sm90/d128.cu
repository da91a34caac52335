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
using Narrow = Config<Element, 128, narrow, 2, false>;
template <typename Element>
using Wide = Config<Element, 128, wide, 2, false, wide_last>;

// Steps of a problem differ in which they prefer.
template <typename Element>
int32_t load_both() {
  const int32_t status = load_kernels<Narrow<Element>>();
  return status == BARACUDA_OK ? load_kernels<Wide<Element>>() : status;
}

template <typename Element>
Variant variant(bool is_wide) {
  return Variant{load_both<Element>,
                 is_wide ? launch_kernel<Wide<Element>> : launch_kernel<Narrow<Element>>};
}

}  // namespace

Variant variant_d128(const StepParams& p) {
  const bool is_wide = prefers_wide(p);
  return p.element == BARACUDA_BF16 ? variant<__nv_bfloat16>(is_wide) : variant<__half>(is_wide);
}

}  // namespace baracuda::sm90
