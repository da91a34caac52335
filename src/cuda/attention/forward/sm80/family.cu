// The sm80 family: which problems it takes, and which instantiation serves them.
#include <cmath>

#include "attention/forward/alignment.h"
#include "attention/forward/sm80/variant.h"

namespace baracuda {
namespace {

using sm80::Variant;
constexpr const char* entry = "baracuda_attention_step";

// A dimension of extent 1 is never stepped over, so its stride does not matter.
int32_t check_stride(const char* name, const char* dimension, int64_t stride, int64_t extent) {
  if (extent <= 1 || stride % 8 == 0) return BARACUDA_OK;
  return fail(BARACUDA_MISALIGNED, entry, "%s has a %s stride of %lld elements; the sm80 kernel "
              "needs a multiple of 8", name, dimension, static_cast<long long>(stride));
}

int32_t check_strides(const char* name, const baracuda_strides& strides, int64_t batch,
                      int64_t heads, int64_t length) {
  int32_t status = check_stride(name, "batch", strides.batch, batch);
  if (status == BARACUDA_OK) status = check_stride(name, "head", strides.head, heads);
  if (status == BARACUDA_OK) status = check_stride(name, "sequence", strides.seq, length);
  return status;
}

int32_t check(const StepParams& p) {
  if (p.element != BARACUDA_F16 && p.element != BARACUDA_BF16) {
    return fail(BARACUDA_UNSUPPORTED, entry, "element is %d; the sm80 kernel takes f16 (0) and "
                "bf16 (1)", p.element);
  }
  switch (p.head_dim) {
    case 64: case 96: case 128: case 192: case 256: break;
    default:
      return fail(BARACUDA_UNSUPPORTED, entry, "head_dim is %lld; the sm80 kernel takes 64, 96, "
                  "128, 192 and 256", static_cast<long long>(p.head_dim));
  }
  if (p.key_len > int64_t{1} << 30) {
    return fail(BARACUDA_UNSUPPORTED, entry, "key_len is %lld; the sm80 kernel takes at most "
                "1073741824 keys a step", static_cast<long long>(p.key_len));
  }
  // The maximum is taken of unscaled scores, and a masked score of -inf must stay -inf.
  const float scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  if (!(scale_log2 > 0.0f) || !std::isnormal(scale_log2)) {
    return fail(BARACUDA_UNSUPPORTED, entry, "scale is %g; the sm80 kernel takes positive scales "
                "within the range of f32", p.scale);
  }
  int32_t status = check_operand_alignment("sm80", p, 16, 16);
  if (status == BARACUDA_OK)
    status = check_strides("q", p.q_strides, p.batch, p.heads, p.query_len);
  if (status == BARACUDA_OK)
    status = check_strides("k", p.k_strides, p.batch, p.kv_heads, p.key_len);
  if (status == BARACUDA_OK)
    status = check_strides("v", p.v_strides, p.batch, p.kv_heads, p.key_len);
  if (status == BARACUDA_OK && (p.flags & BARACUDA_STEP_LAST) != 0)
    status = check_strides("y", p.y_strides, p.batch, p.heads, p.query_len);
  return status;
}

int64_t state_bytes(const StepParams& p) {
  const uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  if ((p.flags & whole) == whole) return 0;
  return p.batch * p.heads * p.query_len * (p.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

int32_t select_d256(bool is_bf16, Variant& variant) {
  int device = 0, per_sm = 0, per_block = 0;
  int32_t status = check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (status == BARACUDA_OK)
    status = check_cuda(cudaDeviceGetAttribute(
                            &per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
                        "cudaDeviceGetAttribute");
  if (status == BARACUDA_OK)
    status = check_cuda(
        cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  if (status != BARACUDA_OK) return status;
  constexpr int narrow = 98 << 10, wide = 130 << 10;  // a little over what a block takes
  variant = per_sm < 2 * narrow && per_block >= wide ? sm80::variant_d256_wide(is_bf16)
                                                     : sm80::variant_d256(is_bf16);
  return BARACUDA_OK;
}

int32_t select(const StepParams& p, Variant& variant) {
  const bool is_bf16 = p.element == BARACUDA_BF16;
  switch (p.head_dim) {
    case 64: variant = sm80::variant_d64(is_bf16); return BARACUDA_OK;
    case 96: variant = sm80::variant_d96(is_bf16); return BARACUDA_OK;
    case 128: variant = sm80::variant_d128(is_bf16); return BARACUDA_OK;
    case 192: variant = sm80::variant_d192(is_bf16); return BARACUDA_OK;
    default: return select_d256(is_bf16, variant);
  }
}

int32_t load(const StepParams& p) {
  Variant variant;
  const int32_t status = select(p, variant);
  return status == BARACUDA_OK ? variant.load() : status;
}

int32_t step(const StepParams& p, void* stream) {
  if (p.batch == 0 || p.heads == 0 || p.query_len == 0) return BARACUDA_OK;
  Variant variant;
  const int32_t status = select(p, variant);
  return status == BARACUDA_OK ? variant.launch(p, static_cast<cudaStream_t>(stream)) : status;
}

int32_t grid(const StepParams& p, StepGrid* grid) {
  Variant variant;
  const int32_t status = select(p, variant);
  return status == BARACUDA_OK ? variant.grid(p, grid) : status;
}

constexpr AttentionFamily family = {"sm80", check, state_bytes, load, step, grid};

}  // namespace

const AttentionFamily& sm80_family() { return family; }

}  // namespace baracuda
