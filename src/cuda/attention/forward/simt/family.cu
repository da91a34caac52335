// The simt family: which problems it takes, and which instantiation serves them.
#include "attention/forward/alignment.h"
#include "attention/forward/simt/variant.h"

namespace baracuda {
namespace {

using simt::Variant;

int32_t check(const StepParams& p) {
  constexpr const char* entry = "baracuda_attention_step";
  if (p.element < BARACUDA_F16 || p.element > BARACUDA_F64) {
    return fail(BARACUDA_UNSUPPORTED, entry, "element is %d; the simt kernel takes f16 (0), bf16 "
                "(1), f32 (2) and f64 (3)", p.element);
  }
  if (p.head_dim < 1 || p.head_dim > 256) {
    return fail(BARACUDA_UNSUPPORTED, entry, "head_dim is %lld; the simt kernel takes 1 to 256",
                static_cast<long long>(p.head_dim));
  }
  return check_operand_alignment("simt", p, element_bytes(p.element),
                                 p.element == BARACUDA_F64 ? 8 : 4);
}

int64_t state_bytes(const StepParams& p) {
  const uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  if ((p.flags & whole) == whole) return 0;
  const int64_t size = p.element == BARACUDA_F64 ? sizeof(double) : sizeof(float);
  return p.batch * p.heads * p.query_len * (p.head_dim + 2) * size;
}

Variant select(const StepParams& p) {
  switch (p.element) {
    case BARACUDA_F16: return simt::variant_f16(p.head_dim);
    case BARACUDA_BF16: return simt::variant_bf16(p.head_dim);
    case BARACUDA_F32: return simt::variant_f32(p.head_dim);
    default: return simt::variant_f64(p.head_dim);
  }
}

int32_t load(const StepParams& p) { return select(p).load(); }

int32_t step(const StepParams& p, void* stream) {
  if (p.batch == 0 || p.heads == 0 || p.query_len == 0) return BARACUDA_OK;
  return select(p).launch(p, static_cast<cudaStream_t>(stream));
}

int32_t grid(const StepParams& p, StepGrid* grid) { return select(p).grid(p, grid); }

constexpr AttentionFamily family = {"simt", check, state_bytes, load, step, grid};

}  // namespace

const AttentionFamily& simt_family() { return family; }

}  // namespace baracuda
