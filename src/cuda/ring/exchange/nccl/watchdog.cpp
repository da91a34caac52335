#include "ring/exchange/nccl/watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "common/error.h"
#include "ring/exchange/nccl/comm.h"

namespace baracuda {
namespace {

using Clock = TimeLimit::Clock;

// Time between two attempts at an abort while the handle is in use.
constexpr std::chrono::milliseconds kAbortRetry{2};
// Time between two polls of the boards.
constexpr std::chrono::milliseconds kLookAtBoards{50};

baracuda_error timeout_failure(const NcclDeadline& deadline) {
  const baracuda_nccl_comm& comm = deadline.comm;
  baracuda_error failure{};
  failure.status = BARACUDA_TIMEOUT;
  failure.rank = comm.rank;
  failure.step = __atomic_load_n(&comm.endpoint.steps_enqueued, __ATOMIC_RELAXED);
  std::snprintf(failure.call, sizeof(failure.call), "%s", deadline.call);
  std::snprintf(failure.message, sizeof(failure.message),
                "rank %d of %d was not done within %g s (a peer is missing or stuck); the "
                "communicator was %s",
                comm.rank, comm.world_size, deadline.limit.seconds(),
                comm.owned ? "aborted" : "left to its owner");
  return failure;
}

// Lock order: the watchdog's mutex, then a communicator's.
class Watchdog {
 public:
  Watchdog() : process_(getpid()) {
    // The new thread blocks all signals, so that the application's threads get them.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      std::thread([this] { watch(); }).detach();
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  bool is_alive() const { return process_ == getpid(); }  // threads do not survive a fork

  void arm(NcclDeadline& deadline) {
    const std::lock_guard<std::mutex> lock(mutex_);
    deadline.fired = false;
    deadline.armed = true;
    deadline.previous = nullptr;
    deadline.next = deadlines_;
    if (deadlines_ != nullptr) deadlines_->previous = &deadline;
    deadlines_ = &deadline;
    if (deadline.limit.at() < wakes_at_) changed_.notify_one();
  }

  bool disarm(NcclDeadline& deadline) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (deadline.armed) unlink(deadline);
    return deadline.fired;
  }

  void abort(baracuda_nccl_comm& comm) {
    const std::lock_guard<std::mutex> lock(mutex_);
    request_abort(comm);
    changed_.notify_one();
  }

  void poll(baracuda_nccl_comm& comm) {
    const std::lock_guard<std::mutex> lock(mutex_);
    comm.next_with_board = with_board_;
    with_board_ = &comm;
    changed_.notify_one();
  }

  void forget(baracuda_nccl_comm& comm) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (comm.run_deadline.armed) unlink(comm.run_deadline);
    forget_board(comm);
    baracuda_nccl_comm** link = &to_abort_;
    while (*link != nullptr && *link != &comm) link = &(*link)->next_to_abort;
    if (*link == &comm) *link = comm.next_to_abort;
  }

 private:
  void watch() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const Clock::time_point now = Clock::now();
      wakes_at_ = Clock::time_point::max();
      for (NcclDeadline* deadline = deadlines_; deadline != nullptr;) {
        NcclDeadline* const following = deadline->next;
        if (deadline->limit.at() <= now) {
          expire(*deadline);
        } else {
          wakes_at_ = std::min(wakes_at_, deadline->limit.at());
        }
        deadline = following;
      }
      poll_boards();
      if (with_board_ != nullptr) wakes_at_ = std::min(wakes_at_, now + kLookAtBoards);
      abort_requested();
      if (to_abort_ != nullptr) wakes_at_ = std::min(wakes_at_, now + kAbortRetry);
      if (wakes_at_ == Clock::time_point::max()) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, wakes_at_);
      }
    }
  }

  void expire(NcclDeadline& deadline) {
    unlink(deadline);
    deadline.fired = true;
    deadline.comm.mark_failed(timeout_failure(deadline));
    request_abort(deadline.comm);
  }

  void poll_boards() {
    for (baracuda_nccl_comm* comm = with_board_; comm != nullptr;) {
      baracuda_nccl_comm* const following = comm->next_with_board;
      baracuda_error found;
      if (comm->board->poll(&found)) {
        if (comm->mark_told(found)) request_abort(*comm);
        forget_board(*comm);
      }
      comm = following;
    }
  }

  void forget_board(baracuda_nccl_comm& comm) {
    baracuda_nccl_comm** link = &with_board_;
    while (*link != nullptr && *link != &comm) link = &(*link)->next_with_board;
    if (*link == &comm) *link = comm.next_with_board;
  }

  void request_abort(baracuda_nccl_comm& comm) {
    if (!comm.owned || comm.abort_requested) return;
    comm.abort_requested = true;
    if (comm.try_abort()) return;
    comm.next_to_abort = to_abort_;
    to_abort_ = &comm;
  }

  void abort_requested() {
    for (baracuda_nccl_comm** link = &to_abort_; *link != nullptr;) {
      baracuda_nccl_comm& comm = **link;
      if (comm.try_abort()) {
        *link = comm.next_to_abort;
      } else {
        link = &comm.next_to_abort;
      }
    }
  }

  void unlink(NcclDeadline& deadline) {
    (deadline.previous != nullptr ? deadline.previous->next : deadlines_) = deadline.next;
    if (deadline.next != nullptr) deadline.next->previous = deadline.previous;
    deadline.armed = false;
  }

  const pid_t process_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Clock::time_point wakes_at_ = Clock::time_point::max();
  NcclDeadline* deadlines_ = nullptr;
  baracuda_nccl_comm* to_abort_ = nullptr;
  baracuda_nccl_comm* with_board_ = nullptr;
};

std::atomic<Watchdog*> running{nullptr};  // never freed: its thread runs until the process ends
std::mutex starting;

Watchdog* find_watchdog() {
  Watchdog* watchdog = running.load(std::memory_order_acquire);
  return watchdog != nullptr && watchdog->is_alive() ? watchdog : nullptr;
}

// NULL, with an error record, if no thread can be started.
Watchdog* start_watchdog() {
  if (Watchdog* watchdog = find_watchdog()) return watchdog;
  const std::lock_guard<std::mutex> lock(starting);
  if (Watchdog* watchdog = find_watchdog()) return watchdog;
  try {
    running.store(new Watchdog, std::memory_order_release);
  } catch (const std::system_error& error) {
    fail(BARACUDA_OUT_OF_MEMORY, "watchdog", "cannot start its thread: %s", error.what());
    return nullptr;
  } catch (const std::bad_alloc&) {
    fail(BARACUDA_OUT_OF_MEMORY, "watchdog", "no memory");
    return nullptr;
  }
  return running.load();
}

}  // namespace

TimeLimit::TimeLimit(double seconds) : seconds_(seconds), at_(Clock::time_point::max()) {
  constexpr double kLongest = 1e8;  // three years: beyond it the clock's arithmetic overflows
  if (!(seconds > 0 && seconds < kLongest)) return;
  const std::chrono::duration<double> left(seconds);
  at_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(left);
}

double TimeLimit::seconds_left() const {
  if (never()) return 0;
  return std::max(1e-3, std::chrono::duration<double>(at_ - Clock::now()).count());
}

int32_t watchdog_arm(NcclDeadline& deadline, const TimeLimit& limit, const char* call) {
  deadline.fired = false;
  if (limit.never()) return BARACUDA_OK;
  Watchdog* watchdog = start_watchdog();
  if (watchdog == nullptr) return BARACUDA_OUT_OF_MEMORY;
  if (deadline.armed) watchdog->disarm(deadline);
  deadline.limit = limit;
  deadline.call = call;
  watchdog->arm(deadline);
  return BARACUDA_OK;
}

bool watchdog_disarm(NcclDeadline& deadline) {
  Watchdog* watchdog = find_watchdog();
  return watchdog != nullptr && watchdog->disarm(deadline);
}

void watchdog_abort(baracuda_nccl_comm& comm) {
  // Without a thread, an abort that is not possible now is left to baracuda_nccl_destroy().
  Watchdog* watchdog = start_watchdog();
  if (watchdog != nullptr) {
    watchdog->abort(comm);
  } else {
    comm.try_abort();
  }
}

void watchdog_poll(baracuda_nccl_comm& comm) {
  // If no thread can be started, the board is not polled, and calls with a deadline are refused.
  if (Watchdog* watchdog = start_watchdog()) watchdog->poll(comm);
}

void watchdog_forget(baracuda_nccl_comm& comm) {
  if (Watchdog* watchdog = find_watchdog()) watchdog->forget(comm);
}

}  // namespace baracuda
