// The sm90a family: which problems it takes, and which instantiation serves them.
#include <climits>
#include <cmath>

#include "attention/forward/alignment.h"
#include "attention/forward/sm90/variant.h"

namespace baracuda {
namespace {

using sm90::Variant;
constexpr const char* entry = "baracuda_attention_step";

// The copy engine steps forward only, in units of 16 bytes, by less than 2^40 bytes. A dimension of
// extent 1 is never stepped over, so its stride does not matter.
int32_t check_stride(const char* name, const char* dimension, int64_t stride, int64_t extent,
                     bool copied) {
  if (extent <= 1) return BARACUDA_OK;
  if (stride % 8 != 0) {
    return fail(BARACUDA_MISALIGNED, entry, "%s has a %s stride of %lld elements; the sm90a kernel "
                "needs a multiple of 8", name, dimension, static_cast<long long>(stride));
  }
  if (copied && (stride < 0 || stride >= int64_t{1} << 39)) {
    return fail(BARACUDA_UNSUPPORTED, entry, "%s has a %s stride of %lld elements; the sm90a "
                "kernel takes 0 to 2^39 - 8", name, dimension, static_cast<long long>(stride));
  }
  return BARACUDA_OK;
}

int32_t check_strides(const char* name, const baracuda_strides& strides, int64_t batch,
                      int64_t heads, int64_t length, bool copied = true) {
  int32_t status = check_stride(name, "batch", strides.batch, batch, copied);
  if (status == BARACUDA_OK) status = check_stride(name, "head", strides.head, heads, copied);
  if (status == BARACUDA_OK) status = check_stride(name, "sequence", strides.seq, length, copied);
  return status;
}

int32_t check(const StepParams& p) {
  if (p.element != BARACUDA_F16 && p.element != BARACUDA_BF16) {
    return fail(BARACUDA_UNSUPPORTED, entry, "element is %d; the sm90a kernel takes f16 (0) and "
                "bf16 (1)", p.element);
  }
  if (p.head_dim != 64 && p.head_dim != 128 && p.head_dim != 256) {
    return fail(BARACUDA_UNSUPPORTED, entry, "head_dim is %lld; the sm90a kernel takes 64, 128 and "
                "256", static_cast<long long>(p.head_dim));
  }
  if (p.key_len > int64_t{1} << 30) {
    return fail(BARACUDA_UNSUPPORTED, entry, "key_len is %lld; the sm90a kernel takes at most "
                "1073741824 keys a step", static_cast<long long>(p.key_len));
  }
  // Tiles and rows are counted in 32 bits; a tile has 64 rows or more.
  if (p.query_len > int64_t{1} << 30 ||
      p.batch * p.heads > INT_MAX / (p.query_len / 64 + 1) - 1024) {
    return fail(BARACUDA_UNSUPPORTED, entry, "batch %lld, heads %lld, query_len %lld: more tiles "
                "than the sm90a kernel can count", static_cast<long long>(p.batch),
                static_cast<long long>(p.heads), static_cast<long long>(p.query_len));
  }
  // The maximum is taken of unscaled scores, and a masked score of -inf must stay -inf.
  const float scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  if (!(scale_log2 > 0.0f) || !std::isnormal(scale_log2)) {
    return fail(BARACUDA_UNSUPPORTED, entry, "scale is %g; the sm90a kernel takes positive scales "
                "within the range of f32", p.scale);
  }
  int32_t status = check_operand_alignment("sm90a", p, 16, 16);
  if (status == BARACUDA_OK)
    status = check_strides("q", p.q_strides, p.batch, p.heads, p.query_len);
  if (status == BARACUDA_OK)
    status = check_strides("k", p.k_strides, p.batch, p.kv_heads, p.key_len);
  if (status == BARACUDA_OK)
    status = check_strides("v", p.v_strides, p.batch, p.kv_heads, p.key_len);
  if (status == BARACUDA_OK && (p.flags & BARACUDA_STEP_LAST) != 0)
    status = check_strides("y", p.y_strides, p.batch, p.heads, p.query_len, false);
  return status;
}

int64_t state_bytes(const StepParams& p) {
  const uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  if ((p.flags & whole) == whole) return 0;
  return p.batch * p.heads * p.query_len * (p.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

Variant select(const StepParams& p) {
  switch (p.head_dim) {
    case 64: return sm90::variant_d64(p);
    case 128: return sm90::variant_d128(p);
    default: return sm90::variant_d256(p);
  }
}

int32_t load(const StepParams& p) { return select(p).load(); }

int32_t step(const StepParams& p, void* stream) {
  if (p.batch == 0 || p.heads == 0 || p.query_len == 0) return BARACUDA_OK;
  return select(p).launch(p, static_cast<cudaStream_t>(stream));
}

int32_t grid(const StepParams& p, StepGrid* grid) { return select(p).grid(p, grid); }

constexpr AttentionFamily family = {"sm90a", check, state_bytes, load, step, grid};

}  // namespace

const AttentionFamily& sm90a_family() { return family; }

}  // namespace baracuda
