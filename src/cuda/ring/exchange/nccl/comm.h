// A communicator's state, and how it fails.
//
// Aborting an NCCL handle frees it, and it must never be touched again. But an abort is also the
// only way out of a call that blocks. So an abort waits until the handle is in no NCCL call
// (kIdle), or has been in a blocking call for some time (kBlocked). Every call checks the state
// first.
#pragma once

#include <stdint.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "baracuda/nccl.h"
#include "baracuda/peer.h"
#include "baracuda/status.h"
#include "ring/exchange/nccl/api.h"
#include "ring/exchange/nccl/board.h"
#include "ring/exchange/nccl/watchdog.h"

namespace baracuda {

struct NcclGroup;

enum NcclState : int32_t { kHealthy = 0, kFailed = 1, kAborted = 2 };

enum class NcclPhase {
  kIdle,     // in no NCCL call
  kInGroup,  // between ncclGroupStart and ncclGroupEnd, in calls that do not block
  kBlocked,  // in a call that may block
};

}  // namespace baracuda

struct baracuda_nccl_comm {
  using Clock = std::chrono::steady_clock;

  baracuda_nccl_comm() : run_deadline(*this) {}

  // NCCL writes the handle during an init that may still block, so that an abort can use it.
  baracuda::NcclComm* load_handle() const { return __atomic_load_n(&handle, __ATOMIC_ACQUIRE); }

  // With the mutex held: BARACUDA_OK, or BARACUDA_ABORTED with the earlier failure as its message.
  int32_t refuse(const char* call) const;
  // Makes the thread's last failure the communicator's, unless it has failed before. Later calls
  // are refused.
  void mark_failed();
  void mark_failed(const baracuda_error& reason);
  // Puts the communicator's failure into the thread's record; BARACUDA_OK while it is healthy.
  int32_t report_failure();

  // Starts ncclCommAbort on a thread of its own, since it may wait for other communicators' aborts.
  // False if the handle is in use: try again later. There is at most one abort.
  bool try_abort();
  // Starts ncclCommDestroy on a thread of its own, since it waits for the other ranks of the node.
  void start_destroy();
  // Waits until the handle's abort or destroy has returned. BARACUDA_TIMEOUT after `seconds` (<= 0:
  // no limit), without a record; BARACUDA_INTERRUPTED after a signal.
  int32_t wait_ended(double seconds, const char* call);

  void enter_blocked();
  // After a failure: false, and the call is not entered, since an earlier abort would not end it.
  bool enter_blocked_if_healthy();
  void leave_blocked();

  baracuda::NcclComm* handle = nullptr;
  bool owned = false;
  int32_t rank = 0;
  int32_t world_size = 1;
  std::unique_ptr<baracuda::NcclBoard> board;  // NULL: no other rank here, or no shared memory
  int32_t splits = 0;
  double patience = 0;      // seconds that init and destroy may take; <= 0: no limit
  void* scratch = nullptr;  // of the warm-up
  baracuda_ring_endpoint endpoint{};

  std::mutex mutex;
  std::atomic<int32_t> state{baracuda::kHealthy};  // written with the mutex held
  baracuda_error failure{};
  baracuda::NcclPhase phase = baracuda::NcclPhase::kIdle;
  Clock::time_point blocked_since{};
  bool ending = false;    // ncclCommAbort or ncclCommDestroy has not returned yet
  int end_result = 0;     // its result
  bool orphaned = false;  // the thread that ends the handle frees the communicator
  std::condition_variable ended;

  // The exchange by peer; NULL before baracuda_nccl_connect_peers().
  baracuda_peer* peer = nullptr;

  baracuda::NcclGroup* group = nullptr;
  baracuda_nccl_comm* next_in_group = nullptr;

  baracuda::NcclDeadline run_deadline;
  // The watchdog's list of communicators to abort, guarded by its mutex.
  bool abort_requested = false;
  baracuda_nccl_comm* next_to_abort = nullptr;
  // The watchdog's list of communicators whose boards it polls.
  baracuda_nccl_comm* next_with_board = nullptr;
};

namespace baracuda {

// Fails the communicator with the thread's last failure. An owned communicator is aborted as soon
// as its handle allows.
void fail_comm(baracuda_nccl_comm& comm);

// If the exchange by peer has failed, fails the communicator with its failure; else BARACUDA_OK.
int32_t find_peer_failure(baracuda_nccl_comm& comm);

// Closes the endpoint and frees the object; NCCL's handle is gone or not ours.
void free_comm(baracuda_nccl_comm* comm);

// Adds comm's rank and the ring step of its last run to the thread's record.
void locate_comm(const baracuda_nccl_comm& comm);

// Begins a call of this rank that the others can see; or the error of a rank that has refused the
// call.
int32_t begin_call(baracuda_nccl_comm& comm, NcclBoard::Kind kind);

// Transport functions; context is a baracuda_nccl_comm.
baracuda_transport nccl_transport(baracuda_nccl_comm& comm);

}  // namespace baracuda
