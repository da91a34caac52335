// The instantiations of the sm90a kernel for head_dim 128, and the choice among them. config.h
// explains their parameters.
#include "attention/forward/step_mask.h"
#include "attention/forward/sm90/launch.cuh"

namespace baracuda::sm90 {
namespace {

// Widths of key tiles, and LastN of the widest. ScoresAhead leaves no registers for the widest.
constexpr int narrow = 128, wide = 144, widest = 176, widest_last = 112;

// The number of columns that are computed for `keys` keys. last: LastN.
int64_t filled(int64_t keys, int tile, int last) {
  const int64_t rest = keys % tile;
  return keys - rest + (rest == 0 ? 0 : rest <= last ? last : tile);
}

// True if a step should take the wider tile of C instead of the narrow one. A wider tile has fewer
// waits per key, and takes some percent less time. A step whose mask has a diagonal gains nothing,
// nor does a step whose last key tile has many unused columns. The choice must not depend on what
// runs at the same time: the width of the tiles changes the last bits of a result, and a ring must
// give the same bits over any transport.
template <typename C>
bool prefers(const StepParams& p, const StepMask& mask) {
  const bool finishes_masked_rows = mask.first_row > 0 && (p.flags & BARACUDA_STEP_LAST) != 0;
  if (mask.has_diagonal || mask.keys == 0) return false;
  if (finishes_masked_rows && !C::finishes_masked_rows) return false;
  const int64_t filled_narrow = filled(mask.keys, narrow, narrow);
  return filled(mask.keys, C::block_n, C::last_n) - filled_narrow <= filled_narrow / 40;
}

// True if a step is faster without ScoresAhead. With it, calls of few keys take up to 6 % longer
// (512 keys without a mask), and first and last steps up to 7 % (zigzag, 1024 rows). Steps in
// between are faster with it. See docs/kernel-log/forward-sm90a-steps.md, "First and last steps of
// few keys without scores ahead".
bool does_without(const StepParams& p, const StepMask& mask) {
  constexpr int64_t few_of_call = 640, few_of_step = 1024;
  if (is_whole(p)) return p.key_len <= few_of_call;
  if ((p.flags & whole_call) == 0) return false;
  // With a diagonal, rows see half of the keys on average.
  return (mask.has_diagonal ? p.key_len / 2 : mask.keys) < few_of_step;
}

// True if a step is faster with three consumers, which read K and V once for 192 query rows instead
// of 128. Their key tiles are narrower, and fewer query tiles are less evenly shared among the SMs,
// so a step needs many rows and keys to gain. If heads share K and V, fewer keys are enough. Steps
// that others of the ring follow are faster in clusters. The choice does not depend on the batch: a
// sequence has the same bits in any batch. See docs/kernel-log/forward-sm90a.md, "Three warpgroups
// at D128 for long sequences", and docs/kernel-log/forward-sm90a-steps.md, "Clusters in the steps of
// a ring".
bool is_long(const StepParams& p, const StepMask& mask) {
  constexpr int64_t rows_of_a_head = 8192, rows_of_all_heads = 196608;
  constexpr int64_t many_keys = 12288, many_keys_of_groups = 4096;
  if ((p.flags & BARACUDA_STEP_LAST) == 0) return false;
  const int64_t rows = p.query_len - mask.first_row;
  const int64_t keys = mask.has_diagonal ? p.key_len : mask.keys;
  return rows >= rows_of_a_head && p.heads * rows >= rows_of_all_heads &&
         keys >= (p.heads > p.kv_heads ? many_keys_of_groups : many_keys);
}

// True if a step is faster in clusters of two blocks. Clusters save power, so they pay in steps that
// run at the power limit. Under a diagonal, the block with the lower query tile has one key tile less
// than the other, and waits for it; the more keys, the less that matters. A last query tile without
// another, which has the most keys under a diagonal, leaves a block idle. The bits are those without
// clusters, so the choice may depend on what runs at the same time. See
// docs/kernel-log/forward-sm90a.md, "Clusters that share K and V, in continuous use", and
// docs/kernel-log/forward-sm90a-steps.md, "Clusters in the steps of a ring".
bool pays_in_pairs(const StepParams& p, const StepMask& mask) {
  constexpr int64_t many_rows = 4096, many_keys = 4096, many_keys_with_diagonal = 8192;
  constexpr int64_t few_of_step = 2048;
  constexpr int64_t tile = 128;  // query rows of a block
  const int64_t rows = p.query_len - mask.first_row;
  const bool even = (rows + tile - 1) / tile % 2 == 0;
  // NCCL's kernel may leave single multiprocessors free in several GPCs, and a cluster needs two in
  // one. A cluster without a place would wait for the end of the others.
  if (!is_whole(p) && p.sm_margin > 0) return false;
  if (mask.has_diagonal) return rows >= many_rows && p.key_len >= many_keys_with_diagonal && even;
  if (is_whole(p)) return rows >= many_rows && mask.keys >= many_keys;
  return rows >= few_of_step && mask.keys >= few_of_step &&
         rows * mask.keys >= many_rows * few_of_step && (even || rows >= many_rows);
}

template <typename Element>
struct Tiles {
  template <int BlockN, Served Steps, int Cluster>
  using Ahead = Config<Element, 128, BlockN, 2, false, BlockN, true, Steps, Cluster>;
  // For steps that begin a state, whole calls among them.
  template <int Cluster>
  using NarrowFirst = Ahead<narrow, Served::beginnings, Cluster>;
  template <int Cluster>
  using WideFirst = Ahead<wide, Served::beginnings, Cluster>;
  // For steps that continue a state.
  template <int Cluster>
  using Narrow = Ahead<narrow, Served::continuations, Cluster>;
  template <int Cluster>
  using Wide = Ahead<wide, Served::continuations, Cluster>;
  // Without ScoresAhead, for which three consumers have no registers.
  using Long = Config<Element, 128, 80, 3, false, 80, false, Served::endings>;
  // Without ScoresAhead.
  using Short = Config<Element, 128, narrow, 2, false, narrow, false, Served::ends_of_rings>;
  using ShortWide = Config<Element, 128, widest, 2, false, widest_last, false, Served::whole_calls>;

  static int32_t load() {
    int32_t status = load_ahead<1>();
    if (status == BARACUDA_OK) status = load_ahead<2>();
    if (status == BARACUDA_OK) status = load_kernels<Long>();
    if (status == BARACUDA_OK) status = load_kernels<Short>();
    return status == BARACUDA_OK ? load_kernels<ShortWide>() : status;
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
    const StepMask mask = step_mask(p);
    if (does_without(p, mask)) {
      return is_whole(p) && prefers<ShortWide>(p, mask) ? f(ShortWide{}, mask) : f(Short{}, mask);
    }
    if (is_long(p, mask)) return f(Long{}, mask);
    return pays_in_pairs(p, mask) ? with_ahead<2>(p, mask, f) : with_ahead<1>(p, mask, f);
  }
  // With ScoresAhead.
  template <int Cluster, typename F>
  static int32_t with_ahead(const StepParams& p, const StepMask& mask, F f) {
    if ((p.flags & BARACUDA_STEP_FIRST) != 0) {
      return prefers<WideFirst<Cluster>>(p, mask) ? f(WideFirst<Cluster>{}, mask)
                                                  : f(NarrowFirst<Cluster>{}, mask);
    }
    return prefers<Wide<Cluster>>(p, mask) ? f(Wide<Cluster>{}, mask) : f(Narrow<Cluster>{}, mask);
  }
  template <int Cluster>
  static int32_t load_ahead() {
    int32_t status = load_kernels<NarrowFirst<Cluster>>();
    if (status == BARACUDA_OK) status = load_kernels<WideFirst<Cluster>>();
    if (status == BARACUDA_OK) status = load_kernels<Narrow<Cluster>>();
    return status == BARACUDA_OK ? load_kernels<Wide<Cluster>>() : status;
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
