// Ends a call early, after a signal (Ctrl-C) or when another thread aborts the call's ring.
#pragma once

#include <stdint.h>

#include <chrono>

namespace baracuda {

// The longest time that a wait may go without checking for a signal.
constexpr std::chrono::milliseconds kLookForSignals{50};

// The scope of a call that may take long. flag: NULL, or a word that another thread sets to not 0
// when the call should end. Scopes nest; an inner scope without a flag keeps the outer one's.
class StopScope {
 public:
  explicit StopScope(const int32_t* flag);
  ~StopScope();
  StopScope(const StopScope&) = delete;
  StopScope& operator=(const StopScope&) = delete;

 private:
  const int32_t* previous_flag_;
};

// To be called within a StopScope. BARACUDA_OK, or BARACUDA_ABORTED or BARACUDA_INTERRUPTED,
// recorded as a failure of `call`. It may run the application's signal handlers, so the caller must
// hold no lock. It checks for signals once every kLookForSignals, so any loop may call it.
int32_t poll_stop(const char* call);

// True if signals end this thread's calls: it is the main thread, a signal check was set, and no
// SignalsLater exists.
bool is_interruptible();

// While one exists, signals end no call of this thread. For callers that cannot tell the
// application.
class SignalsLater {
 public:
  SignalsLater();
  ~SignalsLater();
  SignalsLater(const SignalsLater&) = delete;
  SignalsLater& operator=(const SignalsLater&) = delete;
};

// Runs work(context) on a thread of its own while this thread checks for signals. Returns its
// status, and records its failure for this thread. A signal calls interrupted(context) once, which
// must make the work end. If signals do not end this thread's calls, the work runs on this thread.
int32_t run_interruptibly(int32_t (*work)(void*), void (*interrupted)(void*), void* context,
                          const char* call);

}  // namespace baracuda
