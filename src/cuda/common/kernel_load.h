// Loads a kernel and raises its shared-memory limit once per device.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include <atomic>

#include "common/error.h"

namespace baracuda {

// A bit per device on which the kernel is ready. Devices from 64 on are set up at every call,
// which is slower but right. Two threads may do the same set-up at once: it is idempotent.
class ReadyDevices {
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

inline int32_t ensure_loaded(const void* kernel, int shared_bytes, ReadyDevices& ready) {
  int device = 0;
  int32_t status = check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (status != BARACUDA_OK || ready.contains(device)) return status;
  // Under lazy loading, asking for attributes is what loads the kernel's module.
  cudaFuncAttributes attributes;
  status = check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  if (status != BARACUDA_OK) return status;
  status = check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
      "cudaFuncSetAttribute");
  if (status == BARACUDA_OK) ready.insert(device);
  return status;
}

}  // namespace baracuda
