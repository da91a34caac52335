#include "ring/exchange/nccl/all_gather.h"

#include "common/error.h"
#include "ring/all_gather.h"
#include "ring/exchange/nccl/interruptibly.h"
#include "runtime/scratch.h"

namespace baracuda {
namespace {

constexpr const char* kCall = "baracuda_nccl_all_gather";

// Enqueues the all-gather under a deadline of the watchdog, since NCCL may block this thread. Then
// waits for it; the deadline, a failure of the communicator or a signal ends that wait.
int32_t gather(baracuda_nccl_comm& comm, const void* mine, int64_t bytes, void* all, char* slots,
               const TimeLimit& limit) {
  NcclDeadline deadline(comm);
  int32_t status = watchdog_arm(deadline, limit, kCall);
  if (status != BARACUDA_OK) return status;
  status = enqueue_all_gather(comm.endpoint, mine, bytes, slots);
  watchdog_disarm(deadline);
  if (status == BARACUDA_OK || status == BARACUDA_ABORTED) {
    // If the deadline passed first, that failure is reported.
    const int32_t failed = comm.report_failure();
    if (failed != BARACUDA_OK) return failed;
  }
  if (status == BARACUDA_OK) {
    status = baracuda_nccl_synchronize(&comm, comm.endpoint.ring_stream, limit.seconds_left());
  }
  return status == BARACUDA_OK ? fetch_slots(comm.endpoint, slots, bytes, all) : status;
}

}  // namespace

int32_t nccl_all_gather(baracuda_nccl_comm& comm, const void* mine, int64_t bytes, void* all,
                        const TimeLimit& limit) {
  const int32_t device = comm.endpoint.device;
  void* slots = nullptr;
  baracuda_nccl_comm* const comms[] = {&comm};
  int32_t status = interruptibly(kCall, comms, 1, [&]() -> int32_t {
    const int32_t allocated = scratch_allocate(device, comm.world_size * bytes, &slots);
    if (allocated != BARACUDA_OK) return allocated;
    return gather(comm, mine, bytes, all, static_cast<char*>(slots), limit);
  });
  if (status == BARACUDA_OK) {
    scratch_free(device, slots);
    return status;
  }
  // With a borrowed communicator, work that uses the memory may hang on the device, and freeing the
  // memory would wait for that work.
  const baracuda_error failure = *baracuda_last_error();
  if (comm.owned || device < 0) scratch_free(device, slots);
  return restore_failure(failure);
}

}  // namespace baracuda

extern "C" int32_t baracuda_nccl_all_gather(baracuda_nccl_comm* comm, const void* mine,
                                            int64_t bytes, void* all, double timeout_seconds) {
  const int32_t refused = baracuda::begin_call(*comm, baracuda::NcclBoard::kCompared);
  if (refused != BARACUDA_OK) return refused;
  return baracuda::nccl_all_gather(*comm, mine, bytes, all,
                                   baracuda::TimeLimit(timeout_seconds));
}
