#include "runtime/gate.h"

#include <cuda_runtime_api.h>

#include "common/dependent_launch.cuh"
#include "common/kernel_load.h"

namespace baracuda {
namespace {

struct GateArgs {
  uint64_t* word;
  uint64_t mask;
  uint64_t* signal;
};

__device__ __forceinline__ uint64_t load_system(const uint64_t* word) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}

__device__ __forceinline__ void store_system(uint64_t* word, uint32_t state) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(state) : "memory");
}

// It starts beside the previous launch and occupies one warp. The work that it waits for may itself
// wait for other work on this device, which still finds the rest of the device free.
__global__ void __launch_bounds__(32) gate_kernel(const __grid_constant__ GateArgs args) {
  if (threadIdx.x == 0) {
    while ((load_system(args.word) & args.mask) == 0) __nanosleep(100);
    // Resets the lower half only, like the write that follows a stream's wait. An abort sets the
    // upper half, which stays.
    store_system(args.word, 0);
    __threadfence_system();
  }
  __syncwarp();
  launch_dependent_grids();
  // A wait for this grid must include the previous launch.
  await_previous_grids();
  if (threadIdx.x == 0 && args.signal != nullptr) store_system(args.signal, 1);
}

int32_t load_gate(bool* waits) {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(gate_kernel), 0, ready, waits);
}

}  // namespace

int32_t load_gate() { return load_gate(nullptr); }

int32_t gate(void* stream, void* word, uint64_t mask, void* signal) {
  bool waits = false;
  const int32_t status = load_gate(&waits);
  if (status != BARACUDA_OK) return status;
  const GateArgs args{static_cast<uint64_t*>(word), mask, static_cast<uint64_t*>(signal)};
  return launch_grid(gate_kernel, dim3(1), 32, 0, static_cast<cudaStream_t>(stream), waits, args);
}

}  // namespace baracuda
