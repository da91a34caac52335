#include "ring/head_start.h"

#include "common/kernel_load.h"

namespace baracuda {
namespace {

// 3 to 4 microseconds, twice what suffices beside NCCL 2.28 (H100; on an H200 three times).
constexpr long long kHeadStartCycles = 6000;

__global__ void __launch_bounds__(32) head_start_kernel() {
  const long long begin = clock64();
  while (clock64() - begin < kHeadStartCycles) {
  }
}

}  // namespace

int32_t load_head_start() {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(head_start_kernel), 0, ready);
}

int32_t give_head_start(cudaStream_t stream) {
  const int32_t status = load_head_start();
  if (status != BARACUDA_OK) return status;
  head_start_kernel<<<1, 32, 0, stream>>>();
  return check_cuda(cudaGetLastError(), "head start of an exchange");
}

int32_t make_way(const StepParams& p, int64_t blocks, int64_t per_multiprocessor,
                 cudaStream_t stream) {
  if (p.sm_margin == 0) return BARACUDA_OK;
  int all = 0;
  const int32_t status = count_multiprocessors(&all);
  const int64_t left = all - p.sm_margin;
  // Blocks go to empty multiprocessors first: fewer of them leave whole ones.
  if (status != BARACUDA_OK || blocks <= left || left <= 0) return status;
  const auto last_wave = [=](int64_t multiprocessors) {
    return (blocks - 1) / (multiprocessors * per_multiprocessor);
  };
  return last_wave(left) == last_wave(all) ? give_head_start(stream) : BARACUDA_OK;
}

int32_t make_way_for_clusters(const StepParams& p, int64_t blocks, int multiprocessors,
                              cudaStream_t stream) {
  const bool gives_way = p.sm_margin > 0 && (p.flags & BARACUDA_STEP_GIVES_WAY) != 0;
  return gives_way && blocks == multiprocessors - p.sm_margin ? give_head_start(stream)
                                                              : BARACUDA_OK;
}

}  // namespace baracuda
