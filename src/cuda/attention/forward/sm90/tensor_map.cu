#include "attention/forward/sm90/tensor_map.h"

#include <cuda_runtime_api.h>

#include "common/error.h"

namespace baracuda::sm90 {
namespace {

using Encoder = decltype(&cuTensorMapEncodeTiled);

// Asks the runtime, which has loaded the driver, because nothing here links libcuda.
Encoder find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encoder>(function)
             : nullptr;
}

Encoder encoder() {
  static const Encoder found = find_encoder();
  return found;
}

}  // namespace

int32_t load_tensor_map_encoder() {
  if (encoder() != nullptr) return BARACUDA_OK;
  return fail(BARACUDA_UNAVAILABLE, "cudaGetDriverEntryPoint",
              "the driver has no cuTensorMapEncodeTiled, which the sm90a kernel needs");
}

int32_t encode_tensor_map(CUtensorMap* map, const char* name, bool is_bf16, const void* address,
                          const baracuda_strides& strides, int64_t batch, int64_t heads,
                          int64_t length, int64_t head_dim, int rows) {
  const int32_t status = load_tensor_map_encoder();
  if (status != BARACUDA_OK) return status;
  const cuuint64_t extents[4] = {
      static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(length),
      static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(batch)};
  // The stride of a dimension of extent 1 is never used, but must be legal. So head_dim, which is
  // always a legal stride, is passed for such a dimension.
  const auto bytes = [&](int64_t stride, int64_t extent) {
    return static_cast<cuuint64_t>((extent <= 1 ? head_dim : stride) * 2);
  };
  const cuuint64_t steps[3] = {bytes(strides.seq, length), bytes(strides.head, heads),
                               bytes(strides.batch, batch)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t every[4] = {1, 1, 1, 1};
  const auto encode = [&] {
    return encoder()(
        map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
        const_cast<void*>(address), extents, steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = encode();
  // Runtime calls make the device's primary context current. Driver calls do not, and fail in a
  // thread without a current context. cudaSetDevice makes the primary context current.
  int device = 0;
  if (result == CUDA_ERROR_INVALID_CONTEXT && cudaGetDevice(&device) == cudaSuccess &&
      cudaSetDevice(device) == cudaSuccess) {
    result = encode();
  }
  if (result == CUDA_SUCCESS) return BARACUDA_OK;
  return fail_with_code(BARACUDA_CUDA_ERROR, static_cast<int32_t>(result),
                        "cuTensorMapEncodeTiled",
                        "%s: got strides or an address that TMA cannot describe", name);
}

}  // namespace baracuda::sm90
