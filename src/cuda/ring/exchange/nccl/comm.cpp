#include "ring/exchange/nccl/comm.h"

#include <algorithm>
#include <system_error>
#include <thread>

#include "common/error.h"
#include "common/interrupt.h"
#include "ring/device_scope.h"
#include "ring/exchange/reason.h"
#include "runtime/scratch.h"

namespace {

// A call that has blocked for less time than this may be about to return. An abort would free the
// handle while the call uses it.
constexpr std::chrono::milliseconds kPlainlyStuck{20};

using Lock = std::unique_lock<std::mutex>;

void end_handle(baracuda_nccl_comm* comm, int (*end)(baracuda::NcclComm*)) {
  const int result = end(comm->handle);
  Lock lock(comm->mutex);
  comm->ending = false;
  comm->end_result = result;
  comm->ended.notify_all();
  const bool orphaned = comm->orphaned;
  lock.unlock();
  if (orphaned) baracuda::free_comm(comm);
}

void start_end(baracuda_nccl_comm* comm, int (*end)(baracuda::NcclComm*)) {
  try {
    std::thread(end_handle, comm, end).detach();
  } catch (const std::system_error&) {
    end_handle(comm, end);
  }
}

}  // namespace

int32_t baracuda_nccl_comm::refuse(const char* call) {
  if (state == baracuda::kHealthy) return BARACUDA_OK;
  if (is_news) {
    is_news = false;
    return baracuda::restore_failure(failure);
  }
  baracuda::fail(BARACUDA_ABORTED, call, "the communicator of rank %d failed earlier in %s: %.200s",
                 rank, failure.call, failure.message);
  baracuda::locate_failure(rank, -1);
  return BARACUDA_ABORTED;
}

void baracuda_nccl_comm::mark_failed() { mark_failed(*baracuda_last_error()); }

void baracuda_nccl_comm::mark_failed(const baracuda_error& reason) {
  const Lock lock(mutex);
  is_news = false;  // a call of this rank has failed
  if (state != baracuda::kHealthy) return;
  failure = reason;
  state = baracuda::kFailed;
  if (board != nullptr) board->fail(baracuda::failure_of_others(reason, rank));
  if (peer != nullptr) baracuda_peer_abort(peer, &reason);
}

bool baracuda_nccl_comm::mark_told(const baracuda_error& found) {
  const Lock lock(mutex);
  if (state != baracuda::kHealthy) return false;
  failure = found;
  if (found.step < 0) failure.rank = -1;  // there is no step to name; the message names the rank
  is_news = found.rank != rank;  // this rank knows what it has refused itself
  state = baracuda::kFailed;
  // The failure may not be on the board yet: NcclBoard::poll() also finds another rank's note that
  // conflicts with a call that this rank has begun. So the failure is posted here.
  board->fail(found);
  if (peer != nullptr) baracuda_peer_abort(peer, &found);
  return true;
}

int32_t baracuda_nccl_comm::report_failure() {
  const Lock lock(mutex);
  if (state == baracuda::kHealthy) return BARACUDA_OK;
  is_news = false;
  return baracuda::restore_failure(failure);
}

int32_t baracuda_nccl_comm::report_told() {
  if (state == baracuda::kHealthy) return BARACUDA_OK;
  const Lock lock(mutex);
  if (!is_news) return BARACUDA_OK;
  is_news = false;
  return baracuda::restore_failure(failure);
}

bool baracuda_nccl_comm::try_abort() {
  Lock lock(mutex);
  if (!owned || state == baracuda::kAborted) return true;
  if (phase == baracuda::NcclPhase::kInGroup) return false;
  if (phase == baracuda::NcclPhase::kBlocked &&
      (Clock::now() - blocked_since < kPlainlyStuck || load_handle() == nullptr)) {
    return false;
  }
  state = baracuda::kAborted;
  if (load_handle() == nullptr) return true;
  ending = true;
  lock.unlock();
  start_end(this, baracuda::nccl_api()->comm_abort);
  return true;
}

void baracuda_nccl_comm::start_destroy() {
  Lock lock(mutex);
  ending = true;
  lock.unlock();
  start_end(this, baracuda::nccl_api()->comm_destroy);
}

int32_t baracuda_nccl_comm::wait_ended(double seconds, const char* call) {
  const baracuda::TimeLimit limit(seconds);
  const baracuda::StopScope scope(nullptr);
  const auto has_ended = [this] { return !ending; };
  Lock lock(mutex);
  for (;;) {
    const auto next = std::min(limit.at(), Clock::now() + baracuda::kLookForSignals);
    if (ended.wait_until(lock, next, has_ended)) return BARACUDA_OK;
    if (limit.passed()) return BARACUDA_TIMEOUT;
    lock.unlock();
    const int32_t status = baracuda::poll_stop(call);
    if (status != BARACUDA_OK) return status;
    lock.lock();
  }
}

void baracuda_nccl_comm::enter_blocked() {
  const Lock lock(mutex);
  phase = baracuda::NcclPhase::kBlocked;
  blocked_since = Clock::now();
}

bool baracuda_nccl_comm::enter_blocked_if_healthy() {
  const Lock lock(mutex);
  if (state != baracuda::kHealthy) return false;
  phase = baracuda::NcclPhase::kBlocked;
  blocked_since = Clock::now();
  return true;
}

void baracuda_nccl_comm::leave_blocked() {
  const Lock lock(mutex);
  phase = baracuda::NcclPhase::kIdle;
}

namespace baracuda {

void fail_comm(baracuda_nccl_comm& comm) {
  comm.mark_failed();
  if (comm.owned) watchdog_abort(comm);
}

int32_t find_peer_failure(baracuda_nccl_comm& comm) {
  if (comm.peer == nullptr || comm.state != kHealthy) return BARACUDA_OK;
  const int32_t status = baracuda_peer_check(comm.peer);
  if (status != BARACUDA_OK) fail_comm(comm);
  return status == BARACUDA_OK ? BARACUDA_OK : comm.report_failure();
}

void free_comm(baracuda_nccl_comm* comm) {
  // If a borrowed communicator has failed, work may hang on the device, and freeing device memory
  // would wait for that work.
  if (comm->owned || comm->state == kHealthy || comm->endpoint.device < 0) {
    scratch_free(comm->endpoint.device, comm->scratch);
  }
  baracuda_ring_endpoint_close(&comm->endpoint);
  delete comm;
}

void locate_comm(const baracuda_nccl_comm& comm) {
  locate_failure(comm.rank, __atomic_load_n(&comm.endpoint.steps_enqueued, __ATOMIC_RELAXED));
}

}  // namespace baracuda
