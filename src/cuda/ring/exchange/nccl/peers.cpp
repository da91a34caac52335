// Connects the hops that can use the exchange by peer (copies into the next rank's memory). Set-up
// messages go over NCCL.
#include <algorithm>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "common/error.h"
#include "ring/exchange/nccl/all_gather.h"
#include "ring/exchange/nccl/comm.h"
#include "ring/exchange/nccl/interruptibly.h"

namespace baracuda {
namespace {

constexpr const char* kCall = "baracuda_nccl_connect_peers";
constexpr double kTrialSeconds = 10.0;

// The all-gather for set-up. The communicator's current deadline, a failure or a signal ends it.
int32_t gather(void* context, const void* mine, int64_t bytes, void* all) {
  baracuda_nccl_comm& comm = *static_cast<baracuda_nccl_comm*>(context);
  const NcclDeadline& deadline = comm.run_deadline;
  const TimeLimit limit(deadline.armed ? deadline.limit.seconds_left() : 0);
  return nccl_all_gather(comm, mine, bytes, all, limit);
}

int32_t connect(baracuda_nccl_comm& comm, int32_t wish, int32_t wait, double timeout_seconds) {
  if (comm.world_size == 1 || comm.peer != nullptr) return BARACUDA_OK;
  baracuda_peer_options options{};
  options.struct_size = sizeof(options);
  options.ops = comm.endpoint.device < 0 ? nullptr : baracuda_cuda_peer_ops();
  options.wish = wish;
  options.wait = wait;
  options.all_gather = gather;
  options.context = &comm;
  options.trial_seconds = kTrialSeconds;
  if (timeout_seconds > 0) options.trial_seconds = std::min(kTrialSeconds, timeout_seconds / 2);
  int32_t status = baracuda_nccl_arm(&comm, timeout_seconds);
  if (status != BARACUDA_OK) return status;
  baracuda_peer* peer = nullptr;
  status = baracuda_peer_connect(&comm.endpoint, &options, &peer);
  const baracuda_error failure = *baracuda_last_error();
  const int32_t late = baracuda_nccl_disarm(&comm);
  // After a signal the handler's exception is raised, so a timeout is not reported in its place.
  const bool interrupted = status == BARACUDA_INTERRUPTED;
  {
    const std::lock_guard<std::mutex> lock(comm.mutex);
    comm.peer = peer;
  }
  if (late != BARACUDA_OK && !interrupted) return late;
  if (status == BARACUDA_OK) return status;
  restore_failure(failure);
  fail_comm(comm);
  return restore_failure(failure);
}

// During set-up the ranks wait for each other, so each of them connects on a thread of its own.
int32_t connect_all(baracuda_nccl_comm* const* comms, int32_t count, int32_t wish, int32_t wait,
                    double timeout_seconds) {
  std::vector<baracuda_error> failures(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  int32_t status = BARACUDA_OK;
  try {
    for (int32_t i = 0; i < count; ++i) {
      threads.emplace_back([=, &failures] {
        if (connect(*comms[i], wish, wait, timeout_seconds) != BARACUDA_OK) {
          failures[static_cast<size_t>(i)] = *baracuda_last_error();
        }
      });
    }
  } catch (const std::system_error& error) {
    status = fail(BARACUDA_OUT_OF_MEMORY, kCall, "cannot start a thread: %s", error.what());
    for (int32_t i = 0; i < count; ++i) fail_comm(*comms[i]);
  }
  for (std::thread& thread : threads) thread.join();
  if (status != BARACUDA_OK) return status;
  for (const baracuda_error& failure : failures) {
    if (failure.status != BARACUDA_OK) return restore_failure(failure);
  }
  return BARACUDA_OK;
}

}  // namespace
}  // namespace baracuda

using namespace baracuda;

extern "C" {

int32_t baracuda_nccl_connect_peers(baracuda_nccl_comm* const* comms, int32_t count, int32_t wish,
                                    int32_t wait, double timeout_seconds) {
  if (count == 1) return connect(*comms[0], wish, wait, timeout_seconds);
  return interruptibly(kCall, comms, static_cast<size_t>(count), [=]() -> int32_t {
    return connect_all(comms, count, wish, wait, timeout_seconds);
  });
}

baracuda_peer* baracuda_nccl_peer(const baracuda_nccl_comm* comm) { return comm->peer; }

}  // extern "C"
