// runtime.h over the CUDA runtime. Everything here is legal while a stream is being captured,
// except to wait for that stream or to query it.
#if defined(BARACUDA_WITH_CUDA)

#include "baracuda/runtime.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>

#include "common/error.h"

namespace {

using baracuda::check_cuda;

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// The default streams (NULL, legacy, per-thread) belong to whichever device is current.
bool is_default_stream(void* stream) { return reinterpret_cast<uintptr_t>(stream) <= 2; }

bool means_no_gpu(cudaError_t error) {
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return true;
    default:
      return false;
  }
}

}  // namespace

extern "C" {

int32_t baracuda_cuda_built(void) { return 1; }

int32_t baracuda_cuda_runtime_version(void) { return CUDART_VERSION; }

int32_t baracuda_cuda_driver_version(int32_t* version) {
  int found = 0;
  const cudaError_t error = cudaDriverGetVersion(&found);
  *version = 0;
  if (error != cudaSuccess) {
    if (!means_no_gpu(error)) return check_cuda(error, "cudaDriverGetVersion");
    cudaGetLastError();
    return BARACUDA_OK;
  }
  *version = found >= CUDART_VERSION / 1000 * 1000 ? found : 0;
  return BARACUDA_OK;
}

int32_t baracuda_cuda_device_count(int32_t* count) {
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  *count = 0;
  if (error != cudaSuccess) {
    if (!means_no_gpu(error)) return check_cuda(error, "cudaGetDeviceCount");
    cudaGetLastError();
    return BARACUDA_OK;
  }
  *count = found;
  return BARACUDA_OK;
}

int32_t baracuda_cuda_current_device(int32_t* device) {
  return check_cuda(cudaGetDevice(device), "cudaGetDevice");
}

int32_t baracuda_cuda_set_device(int32_t device) {
  return check_cuda(cudaSetDevice(device), "cudaSetDevice");
}

int32_t baracuda_cuda_device_info(int32_t device, baracuda_cuda_device* info) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return check_cuda(error, "cudaGetDeviceProperties");
  std::snprintf(info->name, sizeof(info->name), "%.127s", properties.name);
  info->compute_capability = 10 * properties.major + properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->max_shared_bytes = static_cast<int32_t>(properties.sharedMemPerBlockOptin);
  info->total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return BARACUDA_OK;
}

int32_t baracuda_cuda_stream_device(void* stream, int32_t* device) {
  if (is_default_stream(stream)) return baracuda_cuda_current_device(device);
  // A stream that is being captured must not be queried: CUDA may refuse (error 900), and a refusal
  // ends the capture.
  int32_t capturing = 0;
  const int32_t status = baracuda_cuda_stream_is_capturing(stream, &capturing);
  if (status != BARACUDA_OK) return status;
  if (capturing) return baracuda_cuda_current_device(device);
#if CUDART_VERSION >= 13000
  return check_cuda(cudaStreamGetDevice(as_stream(stream), device), "cudaStreamGetDevice");
#else
  // A build with CUDA 12 may run on a driver without cudaStreamGetDevice (12.8), but every driver
  // tells the device of a stream's context. The second version of cuStreamGetCtx has a third
  // argument, for green contexts; the first version ignores it.
  using GetContext = int (*)(cudaStream_t, void**, void**);
  using GetDevice = int (*)(int*);
  using PushContext = int (*)(void*);
  using PopContext = int (*)(void**);
  const auto entry = [](const char* name) {
    void* function = nullptr;
    return cudaGetDriverEntryPoint(name, &function, cudaEnableDefault) == cudaSuccess ? function
                                                                                      : nullptr;
  };
  static const auto get_context = reinterpret_cast<GetContext>(entry("cuStreamGetCtx"));
  static const auto push_context = reinterpret_cast<PushContext>(entry("cuCtxPushCurrent"));
  static const auto pop_context = reinterpret_cast<PopContext>(entry("cuCtxPopCurrent"));
  static const auto get_device = reinterpret_cast<GetDevice>(entry("cuCtxGetDevice"));
  void* context = nullptr;
  void* green_context = nullptr;
  if (!get_context || !push_context || !pop_context || !get_device) {
    return check_cuda(cudaErrorInsufficientDriver, "cuStreamGetCtx");
  }
  int error = get_context(as_stream(stream), &context, &green_context);
  if (error == 0) error = push_context(context);
  if (error != 0) return check_cuda(error, "cuStreamGetCtx");
  error = get_device(device);
  pop_context(&context);
  return check_cuda(error, "cuCtxGetDevice");
#endif
}

int32_t baracuda_cuda_pointer_device(const void* pointer, int32_t* device) {
  cudaPointerAttributes attributes;
  const cudaError_t error = cudaPointerGetAttributes(&attributes, pointer);
  if (error != cudaSuccess) return check_cuda(error, "cudaPointerGetAttributes");
  switch (attributes.type) {
    case cudaMemoryTypeDevice:
    case cudaMemoryTypeManaged:
      *device = attributes.device;
      break;
    case cudaMemoryTypeHost:
      *device = -1;
      break;
    default:
      *device = -2;
  }
  return BARACUDA_OK;
}

int32_t baracuda_cuda_stream_synchronize(void* stream) {
  return check_cuda(cudaStreamSynchronize(as_stream(stream)), "cudaStreamSynchronize");
}

int32_t baracuda_cuda_stream_query(void* stream, int32_t* done) {
  const cudaError_t error = cudaStreamQuery(as_stream(stream));
  *done = error == cudaSuccess;
  if (error != cudaErrorNotReady) return check_cuda(error, "cudaStreamQuery");
  cudaGetLastError();  // "not ready" is an answer, not a failure
  return BARACUDA_OK;
}

int32_t baracuda_cuda_stream_is_capturing(void* stream, int32_t* capturing) {
  cudaStreamCaptureStatus state = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(as_stream(stream), &state);
  *capturing = state != cudaStreamCaptureStatusNone;
  return check_cuda(error, "cudaStreamIsCapturing");
}

int32_t baracuda_cuda_copy(void* dst, const void* src, int64_t bytes, void* stream) {
  return check_cuda(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDefault,
                                    as_stream(stream)),
                    "cudaMemcpyAsync");
}

}  // extern "C"

#endif  // BARACUDA_WITH_CUDA
