// Ending a call early: a signal came (Ctrl-C), or another thread aborted the ring that it runs on.
#pragma once

#include <stdint.h>

#include <chrono>

namespace baracuda {

// How long a wait may go on without looking for a signal.
constexpr std::chrono::milliseconds kLookForSignals{50};

// Around a call that may take long. flag: NULL, or not 0 once the call should end; another thread
// writes it. Scopes nest, and an inner one without a flag keeps the outer one's.
class StopScope {
 public:
  explicit StopScope(const int32_t* flag);
  ~StopScope();
  StopScope(const StopScope&) = delete;
  StopScope& operator=(const StopScope&) = delete;

 private:
  const int32_t* previous_flag_;
};

// Within a StopScope: BARACUDA_OK, or BARACUDA_ABORTED or BARACUDA_INTERRUPTED as a failure of call.
// It may run the application's signal handlers, so the caller holds no lock. Cheap enough for any
// loop: it looks for signals every kLookForSignals alone.
int32_t poll_stop(const char* call);

// Whether signals end this thread's calls: it is the process's main one, and somebody asked for it.
bool is_interruptible();

// While one lives, signals end no call of this thread: for callers that cannot tell the application.
class SignalsLater {
 public:
  SignalsLater();
  ~SignalsLater();
  SignalsLater(const SignalsLater&) = delete;
  SignalsLater& operator=(const SignalsLater&) = delete;
};

// Runs work(context) to its end on a thread of its own, while this one looks for signals; returns
// its status, with its failure as this thread's. One that came calls interrupted(context) once, which
// makes the work end. Where signals do not matter the work runs here.
int32_t run_interruptibly(int32_t (*work)(void*), void (*interrupted)(void*), void* context,
                          const char* call);

}  // namespace baracuda
