// The exchange by peer on CUDA: memory of other processes, and words that streams wait for.
#include <cstddef>

#include "baracuda/peer.h"

#if defined(BARACUDA_WITH_CUDA)

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "baracuda/runtime.h"
#include "common/error.h"
#include "runtime/gate.h"

namespace {

using baracuda::check_cuda;
using baracuda::fail;
using baracuda::fail_with_code;

// The driver is never linked: the runtime gives its functions.
struct Driver {
  CUresult (*wait_value)(CUstream, CUdeviceptr, cuuint64_t, unsigned) = nullptr;
  CUresult (*write_value)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = nullptr;
  CUresult (*batch_ops)(CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned) = nullptr;
  CUresult (*address_range)(CUdeviceptr*, size_t*, CUdeviceptr) = nullptr;
  CUresult (*error_string)(CUresult, const char**) = nullptr;

  Driver() {
    find("cuStreamWaitValue64", &wait_value);
    find("cuStreamWriteValue32", &write_value);
    find("cuStreamBatchMemOp", &batch_ops);
    find("cuMemGetAddressRange", &address_range);
    find("cuGetErrorString", &error_string);
  }
  bool is_complete() const { return wait_value && write_value && batch_ops && address_range; }

 private:
  template <typename F>
  static void find(const char* name, F* function) {
    void* found = nullptr;
    // This file uses the ABI of CUDA 12.0 of each function.
#if CUDART_VERSION >= 12050
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault);
#endif
    if (error == cudaSuccess) {
      *function = reinterpret_cast<F>(found);
    } else {
      cudaGetLastError();
    }
  }
};

// Looked up at the first use, when the driver is loaded.
const Driver& driver() {
  static const Driver found;
  return found;
}

int32_t check_driver(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return BARACUDA_OK;
  const char* text = nullptr;
  if (driver().error_string != nullptr) driver().error_string(result, &text);
  return fail_with_code(BARACUDA_CUDA_ERROR, static_cast<int32_t>(result), call, "%s: %s", call,
                        text != nullptr ? text : "unknown error");
}

int32_t export_memory(const void* data, int64_t bytes, baracuda_peer_memory* memory) {
  static_assert(sizeof(cudaIpcMemHandle_t) == BARACUDA_PEER_HANDLE_BYTES, "a handle's size");
  if (!driver().is_complete()) {
    return fail(BARACUDA_UNAVAILABLE, "cuMemGetAddressRange",
                "the driver does not have this function");
  }
  CUdeviceptr base = 0;
  size_t size = 0;
  const CUdeviceptr begin = reinterpret_cast<CUdeviceptr>(data);
  int32_t status =
      check_driver(driver().address_range(&base, &size, begin), "cuMemGetAddressRange");
  if (status != BARACUDA_OK) return status;
  if (begin + static_cast<size_t>(bytes) > base + size) {
    return fail(BARACUDA_INVALID_ARGUMENT, "cuMemGetAddressRange",
                "bytes: got %lld, must end within the allocation of %zu bytes",
                static_cast<long long>(bytes), size);
  }
  cudaIpcMemHandle_t handle;
  const cudaError_t error = cudaIpcGetMemHandle(&handle, const_cast<void*>(data));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return fail_with_code(BARACUDA_CUDA_ERROR, error, "cudaIpcGetMemHandle",
                          "%s; must be memory of cudaMalloc, not of a pool (cudaMallocAsync) and "
                          "not mapped by the driver's virtual memory (expandable segments)",
                          cudaGetErrorName(error));
  }
  std::memcpy(memory->handle, &handle, sizeof(handle));
  memory->offset = static_cast<int64_t>(begin - base);
  return BARACUDA_OK;
}

int32_t open_memory(const baracuda_peer_memory* memory, void** base) {
  cudaIpcMemHandle_t handle;
  std::memcpy(&handle, memory->handle, sizeof(handle));
  *base = nullptr;
  return check_cuda(cudaIpcOpenMemHandle(base, handle, cudaIpcMemLazyEnablePeerAccess),
                    "cudaIpcOpenMemHandle");
}

int32_t close_memory(void* base) {
  return check_cuda(cudaIpcCloseMemHandle(base), "cudaIpcCloseMemHandle");
}

int32_t map_words(void* words, int64_t bytes, void** device_words) {
  *device_words = nullptr;
  int32_t status = check_cuda(cudaHostRegister(words, static_cast<size_t>(bytes),
                                               cudaHostRegisterMapped | cudaHostRegisterPortable),
                              "cudaHostRegister");
  if (status != BARACUDA_OK) return status;
  status = check_cuda(cudaHostGetDevicePointer(device_words, words, 0),
                      "cudaHostGetDevicePointer");
  if (status != BARACUDA_OK) cudaHostUnregister(words);
  return status;
}

int32_t unmap_words(void* words) {
  return check_cuda(cudaHostUnregister(words), "cudaHostUnregister");
}

int32_t write_word(void* stream, void* word, uint32_t value) {
  return check_driver(
      driver().write_value(static_cast<CUstream>(stream), reinterpret_cast<CUdeviceptr>(word),
                           value, CU_STREAM_WRITE_VALUE_DEFAULT),
      "cuStreamWriteValue32");
}

int32_t write_words(void* stream, void* const* words, const uint32_t* values, int32_t count) {
  constexpr int32_t kMost = 4;
  CUstreamBatchMemOpParams writes[kMost] = {};
  if (count > kMost) {
    return fail(BARACUDA_INVALID_ARGUMENT, "cuStreamBatchMemOp",
                "count: got %d, must be at most %d", count, kMost);
  }
  for (int32_t i = 0; i < count; ++i) {
    writes[i].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    writes[i].writeValue.address = reinterpret_cast<CUdeviceptr>(words[i]);
    writes[i].writeValue.value = values[i];
  }
  return check_driver(driver().batch_ops(static_cast<CUstream>(stream),
                                         static_cast<unsigned>(count), writes, 0),
                      "cuStreamBatchMemOp");
}

// Rows of two allocations cannot be one copy. This is checked first, since a failed call may end a
// capture.
int32_t copy_rows(void* into, const void* from, int64_t row_bytes, int64_t pitch, int32_t rows,
                  void* stream) {
  CUdeviceptr base = 0;
  size_t size = 0;
  const CUdeviceptr begin = reinterpret_cast<CUdeviceptr>(from);
  const size_t width = static_cast<size_t>(row_bytes);
  const size_t end = static_cast<size_t>(pitch) * static_cast<size_t>(rows - 1) + width;
  if (driver().address_range(&base, &size, begin) != CUDA_SUCCESS || begin + end > base + size) {
    return BARACUDA_UNSUPPORTED;
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      pitch == row_bytes
          ? cudaMemcpyAsync(into, from, width * static_cast<size_t>(rows), cudaMemcpyDefault, queue)
          : cudaMemcpy2DAsync(into, width, from, static_cast<size_t>(pitch), width,
                              static_cast<size_t>(rows), cudaMemcpyDefault, queue);
  if (error == cudaSuccess) return BARACUDA_OK;
  cudaGetLastError();
  return BARACUDA_UNSUPPORTED;
}

int32_t wait_word(void* stream, void* word, uint64_t mask) {
  return check_driver(
      driver().wait_value(static_cast<CUstream>(stream), reinterpret_cast<CUdeviceptr>(word), mask,
                          CU_STREAM_WAIT_VALUE_AND),
      "cuStreamWaitValue64");
}

// Ranks of one process do not use the exchange by peer. With memory mapped on both devices, an
// allocation of one rank waits for the other rank's kernels, which may wait for data that the first
// rank has yet to send.
const baracuda_peer_ops peer_ops = {
    sizeof(baracuda_peer_ops), export_memory,  open_memory,         close_memory,
    nullptr,                   map_words,      unmap_words,         write_word,
    write_words,               wait_word,      baracuda::gate,      baracuda::load_gate,
    baracuda_cuda_stream_query, copy_rows,
};

}  // namespace

extern "C" const baracuda_peer_ops* baracuda_cuda_peer_ops(void) {
  return driver().is_complete() ? &peer_ops : nullptr;
}

#else

extern "C" const baracuda_peer_ops* baracuda_cuda_peer_ops(void) { return nullptr; }

#endif  // BARACUDA_WITH_CUDA
