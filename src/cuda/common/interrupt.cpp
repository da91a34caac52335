#include "common/interrupt.h"

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "baracuda/runtime.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace {

using Check = int32_t (*)();

std::atomic<Check> signal_check{nullptr};

thread_local const int32_t* stop_flag = nullptr;
thread_local int32_t scopes = 0;
thread_local int64_t looked_at = 0;  // time of the last check, in milliseconds
thread_local int32_t later = 0;

// Takes a few nanoseconds, and has a resolution of a few milliseconds.
int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return int64_t(time.tv_sec) * 1000 + time.tv_nsec / 1000000;
}

int32_t look_for_signals(const char* call) {
  if (!is_interruptible() || signal_check.load()() == 0) return BARACUDA_OK;
  return fail(BARACUDA_INTERRUPTED, call, "a signal came");
}

}  // namespace

StopScope::StopScope(const int32_t* flag) : previous_flag_(stop_flag) {
  if (scopes++ == 0) looked_at = now();
  if (flag != nullptr) stop_flag = flag;
}

StopScope::~StopScope() {
  --scopes;
  stop_flag = previous_flag_;
}

int32_t poll_stop(const char* call) {
  if (stop_flag != nullptr && __atomic_load_n(stop_flag, __ATOMIC_RELAXED) != 0) {
    return fail(BARACUDA_ABORTED, call, "the ring was aborted");
  }
  const int64_t time = now();
  if (time - looked_at < kLookForSignals.count()) return BARACUDA_OK;
  looked_at = time;
  return look_for_signals(call);
}

SignalsLater::SignalsLater() { ++later; }
SignalsLater::~SignalsLater() { --later; }

bool is_interruptible() {
  return signal_check.load(std::memory_order_relaxed) != nullptr && later == 0 &&
         syscall(SYS_gettid) == getpid();
}

int32_t run_interruptibly(int32_t (*work)(void*), void (*interrupted)(void*), void* context,
                          const char* call) {
  if (!is_interruptible()) return work(context);
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  int32_t status = BARACUDA_OK;
  baracuda_error failure{};
  // Only the application's threads handle signals.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread worker;
  try {
    worker = std::thread([&] {
      const int32_t result = work(context);
      const std::lock_guard<std::mutex> lock(mutex);
      status = result;
      failure = *baracuda_last_error();
      done = true;
      changed.notify_all();
    });
  } catch (const std::system_error&) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return work(context);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  bool told = false;
  std::unique_lock<std::mutex> lock(mutex);
  while (!changed.wait_for(lock, kLookForSignals, [&done] { return done; })) {
    if (told) continue;
    lock.unlock();
    if (look_for_signals(call) != BARACUDA_OK) {
      interrupted(context);
      told = true;
    }
    lock.lock();
  }
  lock.unlock();
  worker.join();
  // Work that was done in time fails too, since the signal's exception will be raised.
  if (told) return fail(BARACUDA_INTERRUPTED, call, "a signal came");
  return status == BARACUDA_OK ? status : restore_failure(failure);
}

}  // namespace baracuda

extern "C" int32_t baracuda_set_signal_check(int32_t (*check)(void)) {
  baracuda::signal_check.store(check);
  return BARACUDA_OK;
}
