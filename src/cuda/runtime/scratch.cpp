#include "runtime/scratch.h"

#include <cstddef>
#include <cstdlib>

#include "baracuda/runtime.h"
#include "baracuda/status.h"
#include "common/error.h"

#if defined(BARACUDA_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace baracuda {

int32_t scratch_allocate(int32_t device, int64_t bytes, void** scratch) {
  *scratch = nullptr;
  if (device < 0) {
    *scratch = std::calloc(1, static_cast<size_t>(bytes));
    if (*scratch != nullptr) return BARACUDA_OK;
    return fail(BARACUDA_OUT_OF_MEMORY, "calloc", "no memory for %lld bytes",
                static_cast<long long>(bytes));
  }
#if defined(BARACUDA_WITH_CUDA)
  return check_cuda(cudaMalloc(scratch, static_cast<size_t>(bytes)), "cudaMalloc");
#else
  return fail(BARACUDA_UNAVAILABLE, "cudaMalloc", "this build has no CUDA");
#endif
}

void scratch_free(int32_t device, void* scratch) {
  if (scratch == nullptr) return;
  if (device < 0) {
    std::free(scratch);
    return;
  }
#if defined(BARACUDA_WITH_CUDA)
  cudaFree(scratch);
#endif
}

}  // namespace baracuda

extern "C" int32_t baracuda_cuda_allocate(int64_t bytes, void** data) {
  return baracuda::scratch_allocate(0, bytes, data);
}

extern "C" void baracuda_cuda_free(void* data) { baracuda::scratch_free(0, data); }
