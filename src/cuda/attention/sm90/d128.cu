#include "attention/sm90/launch.cuh"

namespace baracuda::sm90 {
namespace {

constexpr int narrow = 128, wide = 176;

// The wide tile has fewer waits per key and takes 3 % less time for it. That is lost where more
// keys than that are added to fill the last tile, and on a diagonal; and it leaves no room for the
// state.
bool prefers_wide(const StepParams& p) {
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  if ((p.flags & BARACUDA_STEP_CAUSAL) != 0 || (p.flags & whole) != whole) return false;
  const int64_t filled_narrow = (p.key_len + narrow - 1) / narrow * narrow;
  const int64_t filled_wide = (p.key_len + wide - 1) / wide * wide;
  return filled_wide - filled_narrow <= filled_narrow / 40;
}

template <typename Element>
Variant variant(bool is_wide) {
  return is_wide ? make_variant<Config<Element, 128, wide, 2, false>>()
                 : make_variant<Config<Element, 128, narrow, 2, false>>();
}

}  // namespace

Variant variant_d128(const StepParams& p) {
  const bool is_wide = prefers_wide(p);
  return p.element == BARACUDA_BF16 ? variant<__nv_bfloat16>(is_wide) : variant<__half>(is_wide);
}

}  // namespace baracuda::sm90
