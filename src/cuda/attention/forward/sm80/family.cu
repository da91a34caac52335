// The sm80 family: which instantiation serves a problem.
#include "attention/forward/family.h"
#include "attention/forward/sm80/variant.h"
#include "common/error.h"

namespace baracuda {
namespace {

using sm80::Variant;

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
  Variant variant;
  const int32_t status = select(p, variant);
  return status == BARACUDA_OK ? variant.launch(p, static_cast<cudaStream_t>(stream)) : status;
}

int32_t grid(const StepParams& p, StepGrid* grid) {
  Variant variant;
  const int32_t status = select(p, variant);
  return status == BARACUDA_OK ? variant.grid(p, grid) : status;
}

constexpr AttentionFamily family = {load, step, grid};

}  // namespace

const AttentionFamily& sm80_family() { return family; }

}  // namespace baracuda
