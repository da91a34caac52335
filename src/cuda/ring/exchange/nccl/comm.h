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

  // An init writes the handle early, and may block afterwards. Another thread can then read the
  // handle here, and abort the init.
  baracuda::NcclComm* load_handle() const { return __atomic_load_n(&handle, __ATOMIC_ACQUIRE); }

  // The mutex must be held. BARACUDA_OK, or BARACUDA_ABORTED with the earlier failure as its
  // message. Another rank's failure that no call has reported yet is returned as it is.
  int32_t refuse(const char* call);
  // Makes the thread's last failure the communicator's, unless the communicator has failed before.
  // Later calls are refused. The other ranks of the machine are told.
  void mark_failed();
  void mark_failed(const baracuda_error& reason);
  // The same for a failure of another rank that was read from the board (board.h). False if the
  // communicator has failed before.
  bool mark_told(const baracuda_error& found);
  // Puts the communicator's failure into the thread's error record; BARACUDA_OK while the
  // communicator is healthy.
  int32_t report_failure();
  // The same for another rank's failure that no call has reported yet; else BARACUDA_OK.
  int32_t report_told();

  // Starts ncclCommAbort on a thread of its own, since it may wait for other communicators' aborts.
  // False if the handle is in use: try again later. A communicator is aborted only once.
  bool try_abort();
  // Starts ncclCommDestroy on a thread of its own, since it waits for the other ranks of the node.
  void start_destroy();
  // Waits until the handle's abort or destroy has returned. BARACUDA_TIMEOUT after `seconds` (<= 0:
  // no limit), without an error record; BARACUDA_INTERRUPTED after a signal.
  int32_t wait_ended(double seconds, const char* call);

  // To be called before a call that may block on the handle (phase kBlocked). After the call:
  // leave_blocked().
  void enter_blocked();
  // The same, but returns false if the communicator has failed. The call must then not be made: the
  // abort may be over already, and no second abort would end the call.
  bool enter_blocked_if_healthy();
  void leave_blocked();

  baracuda::NcclComm* handle = nullptr;
  bool owned = false;
  int32_t rank = 0;
  int32_t world_size = 1;
  std::unique_ptr<baracuda::NcclBoard> board;  // NULL: a single rank, or no shared memory
  int32_t splits = 0;       // calls of split so far; part of the name of a child's board
  double patience = 0;      // seconds that init and destroy may take; <= 0: no limit
  void* scratch = nullptr;  // memory of the warm-up messages
  baracuda_ring_endpoint endpoint{};

  std::mutex mutex;
  std::atomic<int32_t> state{baracuda::kHealthy};  // written with the mutex held
  baracuda_error failure{};
  bool is_news = false;  // `failure` is another rank's, and no call has reported it yet
  baracuda::NcclPhase phase = baracuda::NcclPhase::kIdle;
  Clock::time_point blocked_since{};
  bool ending = false;    // ncclCommAbort or ncclCommDestroy has not returned yet
  int end_result = 0;     // what that function returned
  bool orphaned = false;  // the thread that ends the handle must free the communicator
  std::condition_variable ended;

  // The exchange by peer; NULL before baracuda_nccl_connect_peers().
  baracuda_peer* peer = nullptr;

  baracuda::NcclGroup* group = nullptr;
  baracuda_nccl_comm* next_in_group = nullptr;

  baracuda::NcclDeadline run_deadline;
  // Links of the watchdog's lists, guarded by its mutex: communicators to abort, and communicators
  // whose boards it polls.
  bool abort_requested = false;
  baracuda_nccl_comm* next_to_abort = nullptr;
  baracuda_nccl_comm* next_with_board = nullptr;
};

namespace baracuda {

// Fails the communicator with the thread's last failure. An owned communicator is aborted as soon
// as its handle allows.
void fail_comm(baracuda_nccl_comm& comm);

// BARACUDA_OK unless the exchange by peer has failed; the communicator then fails with its failure.
int32_t find_peer_failure(baracuda_nccl_comm& comm);

// Closes the endpoint and frees the object. NCCL's handle must have ended or be borrowed.
void free_comm(baracuda_nccl_comm* comm);

// Adds comm's rank and the ring step of its last run to the thread's error record.
void locate_comm(const baracuda_nccl_comm& comm);

// Begins a call of this rank on the board (NcclBoard::begin()). Returns an error if another rank
// has refused this call or makes the other kind of call.
int32_t begin_call(baracuda_nccl_comm& comm, NcclBoard::Kind kind);

// Transport functions; context is a baracuda_nccl_comm.
baracuda_transport nccl_transport(baracuda_nccl_comm& comm);

}  // namespace baracuda
