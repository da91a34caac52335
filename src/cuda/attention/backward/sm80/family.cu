// The sm80 family's backward: which instantiation serves a problem.
#include "attention/backward/family.h"
#include "attention/backward/sm80/variant.h"
#include "common/error.h"

#include <cuda_runtime_api.h>

namespace baracuda {
namespace {

using sm80::backward::Variants;

Variants variants_of(const StepParams& p) {
  const bool is_bf16 = p.element == BARACUDA_BF16;
  switch (p.head_dim) {
    case 64: return sm80::backward::variants_d64(is_bf16);
    case 96: return sm80::backward::variants_d96(is_bf16);
    case 128: return sm80::backward::variants_d128(is_bf16);
    case 192: return sm80::backward::variants_d192(is_bf16);
    default: return sm80::backward::variants_d256(is_bf16);
  }
}

int32_t select(const StepParams& p, BackwardFamily& variant) {
  int device = 0, per_block = 0;
  int32_t status = check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (status == BARACUDA_OK)
    status = check_cuda(
        cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  if (status != BARACUDA_OK) return status;
  const Variants variants = variants_of(p);
  variant = variants.fast_shared_bytes <= per_block ? variants.fast : variants.compact;
  return BARACUDA_OK;
}

int32_t load(const StepParams& problem) {
  BackwardFamily variant;
  const int32_t status = select(problem, variant);
  return status == BARACUDA_OK ? variant.load(problem) : status;
}

int64_t scratch_bytes(const StepParams& problem) {
  return variants_of(problem).compact.scratch_bytes(problem);
}

int32_t prepare(const BackwardParams& params, void* stream) {
  BackwardFamily variant;
  const int32_t status = select(params.step, variant);
  return status == BARACUDA_OK ? variant.prepare(params, stream) : status;
}

int32_t step(const BackwardParams& params, void* stream) {
  BackwardFamily variant;
  const int32_t status = select(params.step, variant);
  return status == BARACUDA_OK ? variant.step(params, stream) : status;
}

int32_t finish(const BackwardParams& params, void* stream) {
  BackwardFamily variant;
  const int32_t status = select(params.step, variant);
  return status == BARACUDA_OK ? variant.finish(params, stream) : status;
}

constexpr BackwardFamily family = {load, scratch_bytes, prepare, step, nullptr, finish};

}  // namespace

const BackwardFamily& sm80_backward_family() { return family; }

}  // namespace baracuda
