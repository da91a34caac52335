// Deadlines for calls that may block inside NCCL. One thread, the watchdog, serves all
// communicators of the process. It also polls the communicators' boards (board.h). The first
// deadline or board starts it.
#pragma once

#include <stdint.h>

#include <chrono>

struct baracuda_nccl_comm;

namespace baracuda {

// A deadline. never(): it does not pass.
class TimeLimit {
 public:
  using Clock = std::chrono::steady_clock;

  explicit TimeLimit(double seconds);  // <= 0: never
  bool never() const { return at_ == Clock::time_point::max(); }
  bool passed() const { return !never() && Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }
  double seconds() const { return seconds_; }  // as asked for
  double seconds_left() const;                 // at least 1 ms; 0: no limit

 private:
  double seconds_;
  Clock::time_point at_;
};

// One deadline of a communicator. The watchdog keeps armed deadlines in a linked list through
// `previous` and `next`, so it allocates nothing.
struct NcclDeadline {
  explicit NcclDeadline(baracuda_nccl_comm& target) : comm(target) {}
  NcclDeadline(const NcclDeadline&) = delete;
  NcclDeadline& operator=(const NcclDeadline&) = delete;

  baracuda_nccl_comm& comm;
  TimeLimit limit{0};
  const char* call = "";  // the call that may block, for the message
  bool armed = false;
  bool fired = false;
  NcclDeadline* previous = nullptr;
  NcclDeadline* next = nullptr;
};

// When the limit passes, comm fails with BARACUDA_TIMEOUT and, if owned, is aborted. Returns
// BARACUDA_OUT_OF_MEMORY if there is a limit and no thread can be started; the caller then gives up
// the call.
int32_t watchdog_arm(NcclDeadline& deadline, const TimeLimit& limit, const char* call);
// True if the limit had passed.
bool watchdog_disarm(NcclDeadline& deadline);

// Aborts a failed, owned communicator: at once, or as soon as try_abort() allows it.
void watchdog_abort(baracuda_nccl_comm& comm);
// Polls comm's board from now on, and fails comm if the board says so.
void watchdog_poll(baracuda_nccl_comm& comm);
// The watchdog holds no pointer to comm afterwards.
void watchdog_forget(baracuda_nccl_comm& comm);

}  // namespace baracuda
