// Streams and events of CUDA devices.
#if defined(BARACUDA_WITH_CUDA)

#include <cuda_runtime_api.h>

#include <cstddef>

#include "baracuda/exchange.h"
#include "baracuda/runtime.h"
#include "baracuda/status.h"
#include "common/error.h"
#include "runtime/pause.h"

namespace {

using baracuda::check_cuda;

int32_t record(void* event, void* stream) {
  return check_cuda(
      cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)),
      "cudaEventRecord");
}

int32_t wait(void* stream, void* event) {
  return check_cuda(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0),
      "cudaStreamWaitEvent");
}

int32_t clear(void* dst, int64_t bytes, void* stream) {
  return check_cuda(cudaMemsetAsync(dst, 0, static_cast<size_t>(bytes),
                                    static_cast<cudaStream_t>(stream)),
                    "cudaMemsetAsync");
}

int32_t create_event(void** event) {
  cudaEvent_t created = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&created, cudaEventDisableTiming);
  *event = created;
  return check_cuda(error, "cudaEventCreateWithFlags");
}

int32_t create_timed_event(void** event) {
  cudaEvent_t created = nullptr;
  const cudaError_t error = cudaEventCreate(&created);
  *event = created;
  return check_cuda(error, "cudaEventCreate");
}

int32_t elapsed(void* from, void* to, float* milliseconds) {
  const int32_t status =
      check_cuda(cudaEventSynchronize(static_cast<cudaEvent_t>(to)), "cudaEventSynchronize");
  if (status != BARACUDA_OK) return status;
  return check_cuda(cudaEventElapsedTime(milliseconds, static_cast<cudaEvent_t>(from),
                                         static_cast<cudaEvent_t>(to)),
                    "cudaEventElapsedTime");
}

int32_t destroy_event(void* event) {
  if (event == nullptr) return BARACUDA_OK;
  return check_cuda(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "cudaEventDestroy");
}

int32_t create_stream(void** stream, int32_t high_priority) {
  *stream = nullptr;
  int least = 0;
  int greatest = 0;
  cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
  if (error != cudaSuccess) return check_cuda(error, "cudaDeviceGetStreamPriorityRange");
  cudaStream_t created = nullptr;
  // Non-blocking: must run beside work on the legacy default stream, which callers may use.
  error = cudaStreamCreateWithPriority(&created, cudaStreamNonBlocking,
                                       high_priority ? greatest : least);
  *stream = created;
  return check_cuda(error, "cudaStreamCreateWithPriority");
}

int32_t destroy_stream(void* stream) {
  if (stream == nullptr) return BARACUDA_OK;
  return check_cuda(cudaStreamDestroy(static_cast<cudaStream_t>(stream)), "cudaStreamDestroy");
}

const baracuda_stream_ops cuda_ops = {
    sizeof(baracuda_stream_ops),
    baracuda_cuda_set_device,
    baracuda_cuda_current_device,
    record,
    wait,
    baracuda_cuda_copy,
    clear,
    create_event,
    destroy_event,
    create_stream,
    destroy_stream,
    baracuda_cuda_stream_synchronize,
    create_timed_event,
    elapsed,
    baracuda::pause,
    baracuda::load_pause,
    baracuda::multiprocessors,
};

}  // namespace

extern "C" const baracuda_stream_ops* baracuda_cuda_stream_ops(void) { return &cuda_ops; }

#endif  // BARACUDA_WITH_CUDA
