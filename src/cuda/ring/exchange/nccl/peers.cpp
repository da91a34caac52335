// The hops of a communicator's ring that go by peer: NCCL is what the ranks agree through.
#include <algorithm>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "common/error.h"
#include "ring/exchange/nccl/comm.h"

namespace baracuda {
namespace {

constexpr double kTrialSeconds = 10.0;

int32_t connect(baracuda_nccl_comm& comm, int32_t wish, int32_t wait, double timeout_seconds) {
  if (comm.world_size == 1 || comm.peer != nullptr) return BARACUDA_OK;
  baracuda_peer_options options{};
  options.struct_size = sizeof(options);
  options.ops = comm.endpoint.device < 0 ? nullptr : baracuda_cuda_peer_ops();
  options.wish = wish;
  options.wait = wait;
  options.trial_seconds = kTrialSeconds;
  if (timeout_seconds > 0) options.trial_seconds = std::min(kTrialSeconds, timeout_seconds / 2);
  int32_t status = baracuda_nccl_arm(&comm, timeout_seconds);
  if (status != BARACUDA_OK) return status;
  baracuda_peer* peer = nullptr;
  status = baracuda_peer_connect(&comm.endpoint, &options, &peer);
  const baracuda_error failure = *baracuda_last_error();
  const int32_t late = baracuda_nccl_disarm(&comm);
  {
    const std::lock_guard<std::mutex> lock(comm.mutex);
    comm.peer = peer;
  }
  if (late != BARACUDA_OK) return late;
  if (status == BARACUDA_OK) return status;
  restore_failure(failure);
  fail_comm(comm);
  return restore_failure(failure);
}

}  // namespace
}  // namespace baracuda

using namespace baracuda;

extern "C" {

int32_t baracuda_nccl_connect_peers(baracuda_nccl_comm* const* comms, int32_t count, int32_t wish,
                                    int32_t wait, double timeout_seconds) {
  if (count == 1) return connect(*comms[0], wish, wait, timeout_seconds);
  // Ranks that agree wait for each other, each on a thread of its own.
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
    status = fail(BARACUDA_OUT_OF_MEMORY, "baracuda_nccl_connect_peers",
                  "cannot start a thread: %s", error.what());
    for (int32_t i = 0; i < count; ++i) fail_comm(*comms[i]);
  }
  for (std::thread& thread : threads) thread.join();
  if (status != BARACUDA_OK) return status;
  for (const baracuda_error& failure : failures) {
    if (failure.status != BARACUDA_OK) return restore_failure(failure);
  }
  return BARACUDA_OK;
}

baracuda_peer* baracuda_nccl_peer(const baracuda_nccl_comm* comm) { return comm->peer; }

}  // extern "C"
