// The sm80 family's backward: chooses the instantiation that serves a problem.
#include "attention/backward/family.h"
#include "attention/backward/sm80/variant.h"
#include "common/error.h"

#include <cuda_runtime_api.h>

namespace baracuda {
namespace {

using sm80::backward::Variants;

template <bool Ordered>
Variants variants_of(const StepParams& p) {
  using namespace sm80::backward;
  const bool is_bf16 = p.element == BARACUDA_BF16;
  switch (p.head_dim) {
    case 64: return Ordered ? variants_d64_ordered(is_bf16) : variants_d64(is_bf16);
    case 96: return Ordered ? variants_d96_ordered(is_bf16) : variants_d96(is_bf16);
    case 128: return Ordered ? variants_d128_ordered(is_bf16) : variants_d128(is_bf16);
    case 192: return Ordered ? variants_d192_ordered(is_bf16) : variants_d192(is_bf16);
    default: return Ordered ? variants_d256_ordered(is_bf16) : variants_d256(is_bf16);
  }
}

template <bool Ordered>
int32_t select(const StepParams& p, BackwardFamily& variant) {
  int device = 0, per_block = 0;
  int32_t status = check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (status == BARACUDA_OK)
    status = check_cuda(
        cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  if (status != BARACUDA_OK) return status;
  const Variants variants = variants_of<Ordered>(p);
  variant = variants.fast_shared_bytes <= per_block ? variants.fast : variants.compact;
  return BARACUDA_OK;
}

template <bool Ordered>
int32_t load(const StepParams& problem) {
  BackwardFamily variant;
  const int32_t status = select<Ordered>(problem, variant);
  return status == BARACUDA_OK ? variant.load(problem) : status;
}

template <bool Ordered>
int64_t scratch_bytes(const StepParams& problem) {
  return variants_of<Ordered>(problem).compact.scratch_bytes(problem);
}

template <bool Ordered>
int32_t prepare(const BackwardParams& params, void* stream) {
  BackwardFamily variant;
  const int32_t status = select<Ordered>(params.step, variant);
  return status == BARACUDA_OK ? variant.prepare(params, stream) : status;
}

template <bool Ordered>
int32_t step(const BackwardParams& params, void* stream) {
  BackwardFamily variant;
  const int32_t status = select<Ordered>(params.step, variant);
  return status == BARACUDA_OK ? variant.step(params, stream) : status;
}

template <bool Ordered>
int32_t finish(const BackwardParams& params, void* stream) {
  BackwardFamily variant;
  const int32_t status = select<Ordered>(params.step, variant);
  return status == BARACUDA_OK ? variant.finish(params, stream) : status;
}

template <bool Ordered>
constexpr BackwardFamily family = {load<Ordered>, scratch_bytes<Ordered>, prepare<Ordered>,
                                   step<Ordered>, nullptr,                finish<Ordered>};

}  // namespace

const BackwardFamily& sm80_backward_family() { return family<false>; }

const BackwardFamily& sm80_ordered_backward_family() { return family<true>; }

}  // namespace baracuda
