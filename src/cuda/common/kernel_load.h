// Loads a kernel and raises its shared-memory limit once per device.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include <atomic>

#include "common/error.h"

namespace baracuda {

// A set of devices. It never contains devices from 64 on.
class DeviceSet {
 public:
  bool contains(int device) const {
    return device < 64 && (bits_.load(std::memory_order_acquire) >> device & 1) != 0;
  }
  void insert(int device) {
    if (device < 64) bits_.fetch_or(uint64_t{1} << device, std::memory_order_release);
  }

 private:
  std::atomic<uint64_t> bits_{0};
};

// The devices on which a kernel is set up. On a device that the set cannot hold, every call sets it
// up again, which is slower but right. Two threads may set up at once: the set-up is idempotent.
struct ReadyDevices {
  DeviceSet loaded;
  DeviceSet waits;  // where its code waits for the previous grids (see dependent_launch.cuh)
};

inline int32_t count_multiprocessors(int* count) {
  int device = 0;
  const int32_t status = check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (status != BARACUDA_OK) return status;
  return check_cuda(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device),
                    "cudaDeviceGetAttribute");
}

inline int32_t ensure_loaded(const void* kernel, int shared_bytes, ReadyDevices& ready,
                             bool* waits = nullptr) {
  int device = 0;
  int32_t status = check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (waits != nullptr) *waits = ready.waits.contains(device);
  if (status != BARACUDA_OK || ready.loaded.contains(device)) return status;
  // Under lazy loading, the query of attributes loads the kernel's module.
  cudaFuncAttributes attributes;
  status = check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  if (status != BARACUDA_OK) return status;
  status = check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
      "cudaFuncSetAttribute");
  if (status != BARACUDA_OK) return status;
  const bool has_wait = attributes.ptxVersion >= 90;
  if (has_wait) ready.waits.insert(device);
  ready.loaded.insert(device);
  if (waits != nullptr) *waits = has_wait;
  return BARACUDA_OK;
}

}  // namespace baracuda
