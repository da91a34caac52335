// A communicator's state, and how it fails.
//
// An NCCL handle that was aborted is freed and must never be touched again, while aborting is the
// only way out of a call that blocks. So an abort waits until the handle is either in no NCCL call
// (kIdle) or in one that is plainly stuck (kBlocked for a while), and every call asks for the
// state first.
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

  // NCCL writes it during an init that may still block, for an abort to find.
  baracuda::NcclComm* load_handle() const { return __atomic_load_n(&handle, __ATOMIC_ACQUIRE); }

  // With the mutex held: BARACUDA_OK, or BARACUDA_ABORTED telling what failed earlier.
  int32_t refuse(const char* call) const;
  // Makes the thread's last failure this communicator's, unless it had one. Every later call is
  // refused.
  void mark_failed();
  void mark_failed(const baracuda_error& reason);
  // The failure itself, put into the thread's record; BARACUDA_OK while healthy.
  int32_t report_failure();

  // Starts ncclCommAbort on a thread of its own (it may wait for other communicators' aborts).
  // False where the handle is in use: try again later. At most one abort ever happens.
  bool try_abort();
  // ncclCommDestroy on a thread of its own: it waits for the other ranks of the node.
  void start_destroy();
  // Until the handle's end has returned: BARACUDA_TIMEOUT after seconds (<= 0: no limit), without a
  // record, and BARACUDA_INTERRUPTED where a signal came.
  int32_t wait_ended(double seconds, const char* call);

  void enter_blocked();
  // False, and not entered, after a failure: an abort that came before a call would not end it.
  bool enter_blocked_if_healthy();
  void leave_blocked();

  baracuda::NcclComm* handle = nullptr;
  bool owned = false;
  int32_t rank = 0;
  int32_t world_size = 1;
  std::unique_ptr<baracuda::NcclBoard> board;  // NULL: nobody else is on this machine, or no memory
  int32_t splits = 0;
  double patience = 0;      // seconds that its making could take, and its end may; <= 0: no limit
  void* scratch = nullptr;  // of the warm-up
  baracuda_ring_endpoint endpoint{};

  std::mutex mutex;
  std::atomic<int32_t> state{baracuda::kHealthy};  // written with the mutex held
  baracuda_error failure{};
  baracuda::NcclPhase phase = baracuda::NcclPhase::kIdle;
  Clock::time_point blocked_since{};
  bool ending = false;    // ncclCommAbort or ncclCommDestroy has not returned yet
  int end_result = 0;     // what it returned
  bool orphaned = false;  // its thread frees the communicator
  std::condition_variable ended;

  // Of the hops that take another way than NCCL; NULL where none was looked for.
  baracuda_peer* peer = nullptr;

  baracuda::NcclGroup* group = nullptr;
  baracuda_nccl_comm* next_in_group = nullptr;

  baracuda::NcclDeadline run_deadline;
  // The watchdog's list of communicators to abort, guarded by its mutex.
  bool abort_requested = false;
  baracuda_nccl_comm* next_to_abort = nullptr;
  // And that of those whose boards it looks at.
  baracuda_nccl_comm* next_with_board = nullptr;
};

namespace baracuda {

// Fails the communicator with the thread's last failure; an owned one is aborted as soon as its
// handle allows.
void fail_comm(baracuda_nccl_comm& comm);

// Fails the communicator where the exchange by peer has failed; its failure, or BARACUDA_OK.
int32_t find_peer_failure(baracuda_nccl_comm& comm);

// Closes the endpoint and frees the object; NCCL's handle is gone or not ours.
void free_comm(baracuda_nccl_comm* comm);

// Records where comm was: its rank, and the ring step that its last run had reached.
void locate_comm(const baracuda_nccl_comm& comm);

// BARACUDA_OK and a call of this rank that the others know of, or the error of one that has refused it.
int32_t begin_call(baracuda_nccl_comm& comm, NcclBoard::Kind kind);

// Transport functions; context is a baracuda_nccl_comm.
baracuda_transport nccl_transport(baracuda_nccl_comm& comm);

}  // namespace baracuda
