#include "common/error.h"

#if defined(BARACUDA_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace baracuda {

#if defined(BARACUDA_WITH_CUDA)

namespace {

const char* advice(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return CUDART_VERSION >= 13000
                 ? " (no NVIDIA driver, or one older than 580, which this build needs)"
                 : " (no NVIDIA driver, or one too old for this build)";
    case cudaErrorNoKernelImageForDevice:
      return " (this build has no code for this device's compute capability)";
    default:
      return "";
  }
}

}  // namespace

int32_t check_cuda(int32_t cuda_error, const char* call) {
  if (cuda_error == cudaSuccess) return BARACUDA_OK;
  const cudaError_t error = static_cast<cudaError_t>(cuda_error);
  // The error is reported here, so the check of a later launch must not report it again.
  cudaGetLastError();
  return fail_with_code(BARACUDA_CUDA_ERROR, cuda_error, call, "%s: %s%s", cudaGetErrorName(error),
                        cudaGetErrorString(error), advice(error));
}

#else

int32_t check_cuda(int32_t cuda_error, const char* call) {
  if (cuda_error == 0) return BARACUDA_OK;
  return fail_with_code(BARACUDA_CUDA_ERROR, cuda_error, call, "CUDA error %d", cuda_error);
}

#endif

}  // namespace baracuda
