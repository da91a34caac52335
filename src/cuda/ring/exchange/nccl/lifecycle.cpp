// Functions of a finished communicator: queries, synchronize, deadlines of runs, abort, destroy.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <thread>

#include "baracuda/runtime.h"
#include "common/error.h"
#include "common/interrupt.h"
#include "ring/device_scope.h"
#include "ring/exchange/nccl/comm.h"

namespace baracuda {
namespace {

using Lock = std::unique_lock<std::mutex>;

// Seconds that destroy waits for ncclCommAbort, which may wait for other communicators' aborts.
constexpr double kAbortPatience = 5.0;

int32_t refuse(baracuda_nccl_comm& comm, const char* call) {
  const Lock lock(comm.mutex);
  return comm.refuse(call);
}

// Finds a failure of comm: an earlier one, one on the board (board.h), one of the exchange by peer,
// or NCCL's asynchronous error. NCCL's error becomes comm's failure, but this function does not
// abort comm for it. baracuda_nccl_synchronize() does. The board is asked before NCCL, because the
// abort of the failed rank makes NCCL report an error here.
int32_t find_async_error(baracuda_nccl_comm& comm) {
  baracuda_error found;
  if (comm.board != nullptr && comm.board->has_failed(&found) && comm.mark_told(found) &&
      comm.owned) {
    watchdog_abort(comm);  // comm has failed now, so the watchdog no longer aborts it by itself
  }
  int32_t status = comm.report_failure();
  if (status == BARACUDA_OK) status = find_peer_failure(comm);
  if (status != BARACUDA_OK) return status;
  {
    const Lock lock(comm.mutex);  // keeps an abort away from the handle
    if (comm.state != kHealthy) return restore_failure(comm.failure);
    int error = kNcclSuccess;
    status = check_nccl(nccl_api()->comm_get_async_error(comm.handle, &error),
                        "ncclCommGetAsyncError");
    if (status == BARACUDA_OK && error != kNcclInProgress) {
      status = check_nccl(error, "ncclCommGetAsyncError");
    }
  }
  if (status != BARACUDA_OK) {
    locate_comm(comm);
    comm.mark_failed();
  }
  return status;
}

int32_t fail_synchronize(baracuda_nccl_comm& comm, double seconds) {
  const int32_t steps = __atomic_load_n(&comm.endpoint.steps_enqueued, __ATOMIC_RELAXED);
  fail(BARACUDA_TIMEOUT, "baracuda_nccl_synchronize",
       "rank %d of %d: the stream was not done within %g s (%d ring steps were enqueued); a peer "
       "is missing or stuck",
       comm.rank, comm.world_size, seconds, steps);
  locate_comm(comm);
  return BARACUDA_TIMEOUT;
}

// Waits until the stream is done. A failure, the limit or a signal ends the wait. The pauses
// between two polls grow: a short wait ends soon, and a long one costs little.
int32_t poll(baracuda_nccl_comm& comm, void* stream, const TimeLimit& limit) {
  const StopScope scope(nullptr);
  std::chrono::microseconds pause{0};
  for (;;) {
    int32_t done = 1;
    if (comm.endpoint.device >= 0) {
      const int32_t status = baracuda_cuda_stream_query(stream, &done);
      if (status != BARACUDA_OK) return status;
    }
    // NCCL is asked even if the stream is done, because NCCL's kernels end early after an error.
    const int32_t status = find_async_error(comm);
    if (status != BARACUDA_OK || done) return status;
    if (limit.passed()) return fail_synchronize(comm, limit.seconds());
    const int32_t interrupted = poll_stop("baracuda_nccl_synchronize");
    if (interrupted != BARACUDA_OK) return interrupted;
    std::this_thread::sleep_for(pause);
    pause = std::min(std::chrono::microseconds(1000), pause * 3 / 2 + std::chrono::microseconds(5));
  }
}

}  // namespace

int32_t begin_call(baracuda_nccl_comm& comm, NcclBoard::Kind kind) {
  baracuda_error found;
  if (comm.board == nullptr || comm.board->begin(kind, &found)) return BARACUDA_OK;
  found.rank = -1;  // the error's `call` names the rank that it comes from
  return restore_failure(found);
}

}  // namespace baracuda

using namespace baracuda;

extern "C" {

int32_t baracuda_nccl_rank(const baracuda_nccl_comm* comm) { return comm->rank; }

int32_t baracuda_nccl_world_size(const baracuda_nccl_comm* comm) { return comm->world_size; }

void* baracuda_nccl_handle(const baracuda_nccl_comm* comm) {
  return comm->state == kAborted ? nullptr : comm->load_handle();
}

int32_t baracuda_nccl_is_owned(const baracuda_nccl_comm* comm) { return comm->owned; }

baracuda_ring_endpoint* baracuda_nccl_endpoint(baracuda_nccl_comm* comm) {
  return &comm->endpoint;
}

int32_t baracuda_nccl_state(baracuda_nccl_comm* comm) {
  if (find_peer_failure(*comm) != BARACUDA_OK) {
    const Lock lock(comm->mutex);
    comm->is_news = true;  // for the next call to report
  }
  return comm->state;
}

int32_t baracuda_nccl_poll(baracuda_nccl_comm* comm, int32_t* state) {
  int32_t status = find_peer_failure(*comm);
  if (status == BARACUDA_OK) status = comm->report_told();
  *state = comm->state;
  return status;
}

int32_t baracuda_nccl_async_error(baracuda_nccl_comm* comm) { return find_async_error(*comm); }

int32_t baracuda_nccl_synchronize(baracuda_nccl_comm* comm, void* stream, double timeout_seconds) {
  int32_t capturing = 0;
  DeviceScope scope;  // a NULL stream is the default stream of the current device
  if (comm->endpoint.device >= 0) {
    int32_t status = scope.enter(*comm->endpoint.ops, comm->endpoint.device);
    // A query of a stream that is being captured would invalidate the capture.
    if (status == BARACUDA_OK) status = baracuda_cuda_stream_is_capturing(stream, &capturing);
    if (status != BARACUDA_OK) return status;
  }
  if (capturing) {
    return fail(BARACUDA_INVALID_ARGUMENT, "baracuda_nccl_synchronize",
                "stream: got one that is being captured, must be one that is not");
  }
  int32_t status = refuse(*comm, "baracuda_nccl_synchronize");
  if (status == BARACUDA_OK) status = poll(*comm, stream, TimeLimit(timeout_seconds));
  if (status == BARACUDA_OK) return status;
  const baracuda_error failure = *baracuda_last_error();
  // The communicator fails even if only the query of the stream failed: the work on the stream may
  // never end.
  fail_comm(*comm);
  return restore_failure(failure);
}

int32_t baracuda_nccl_abort(baracuda_nccl_comm* comm) {
  fail(BARACUDA_ABORTED, "baracuda_nccl_abort", "on request");
  locate_failure(comm->rank, -1);
  fail_comm(*comm);
  return BARACUDA_OK;
}

int32_t baracuda_nccl_refuse(baracuda_nccl_comm* comm, int32_t status, const char* reason,
                             int32_t begun) {
  if (comm->board == nullptr) return BARACUDA_OK;
  baracuda_error error = {status, 0, comm->rank, -1, "", ""};
  std::snprintf(error.call, sizeof(error.call), "rank %d", comm->rank);
  std::snprintf(error.message, sizeof(error.message), "%s", reason);
  comm->board->refuse(error, begun != 0);
  return BARACUDA_OK;
}

int32_t baracuda_nccl_arm(baracuda_nccl_comm* comm, double timeout_seconds) {
  int32_t refused = refuse(*comm, "baracuda_nccl_arm");
  if (refused == BARACUDA_OK) refused = find_peer_failure(*comm);
  if (refused == BARACUDA_OK) refused = begin_call(*comm, NcclBoard::kRun);
  if (refused != BARACUDA_OK) return refused;
  return watchdog_arm(comm->run_deadline, TimeLimit(timeout_seconds), "ring run");
}

int32_t baracuda_nccl_disarm(baracuda_nccl_comm* comm) {
  if (!watchdog_disarm(comm->run_deadline)) return BARACUDA_OK;
  comm->run_deadline.fired = false;
  const int32_t status = comm->report_failure();
  if (status == BARACUDA_TIMEOUT) return status;
  fail(BARACUDA_TIMEOUT, "ring run", "rank %d was not done within %g s", comm->rank,
       comm->run_deadline.limit.seconds());
  locate_comm(*comm);
  return BARACUDA_TIMEOUT;
}

int32_t baracuda_nccl_close_peers(baracuda_nccl_comm* comm) {
  if (comm->peer == nullptr) return 0;
  const bool healthy = comm->state == kHealthy;
  int32_t quarantined = 0;
  baracuda_peer* const peer = comm->peer;
  {
    const Lock lock(comm->mutex);  // an abort reads comm->peer
    comm->peer = nullptr;
  }
  baracuda_peer_close(peer, healthy ? comm->patience : kAbortPatience, &quarantined);
  return quarantined;
}

int32_t baracuda_nccl_destroy(baracuda_nccl_comm* comm) {
  if (comm == nullptr) return BARACUDA_OK;
  watchdog_forget(*comm);
  int32_t status = BARACUDA_OK;
  baracuda_nccl_close_peers(comm);
  if (comm->owned && comm->load_handle() != nullptr) {
    const bool healthy = comm->state == kHealthy;
    if (healthy) {
      comm->start_destroy();
    } else {
      comm->try_abort();
    }
    constexpr const char* call = "ncclCommDestroy";
    const double patience = healthy ? comm->patience : kAbortPatience;
    const int32_t waited = comm->wait_ended(patience, call);
    if (waited != BARACUDA_OK) {
      Lock lock(comm->mutex);
      if (comm->ending) {
        // The thread that waits in NCCL frees the communicator when NCCL returns.
        comm->orphaned = true;
        if (waited != BARACUDA_TIMEOUT) return waited;
        if (!healthy) return BARACUDA_OK;
        fail(BARACUDA_TIMEOUT, call,
             "rank %d of %d: the other ranks of this machine did not end their communicators "
             "within %g s",
             comm->rank, comm->world_size, patience);
        locate_failure(comm->rank, -1);
        return BARACUDA_TIMEOUT;
      }
    }
    if (healthy) status = check_nccl(comm->end_result, call);
    if (status != BARACUDA_OK) locate_failure(comm->rank, -1);
    if (waited != BARACUDA_OK && waited != BARACUDA_TIMEOUT) status = waited;
  }
  free_comm(comm);
  return status;
}

}  // extern "C"
