#include "attention/forward/host/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "attention/forward/host/block.h"
#include "attention/forward/host/cpu_quota.h"
#include "baracuda/host.h"
#include "baracuda/status.h"
#include "common/error.h"
#include "common/interrupt.h"

namespace baracuda {
namespace host {
namespace {

constexpr int32_t kMaxThreads = 1024;

void* allocate_scratch() { return std::aligned_alloc(64, kScratchBytes); }

struct Scratch {
  void* memory = nullptr;
  bool in_use = false;
  ~Scratch() { std::free(memory); }
};

// Allocated at a thread's first use and kept, so that later steps do not allocate.
Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  if (scratch.memory == nullptr) scratch.memory = allocate_scratch();
  return scratch;
}

// The thread's scratch for one call. A signal handler that runs a step within a step gets another
// scratch.
class ScratchUse {
 public:
  ScratchUse() : kept_(thread_scratch()), nested_(kept_.in_use) {
    memory_ = nested_ ? allocate_scratch() : kept_.memory;
    kept_.in_use = true;
  }
  ~ScratchUse() {
    if (nested_) {
      std::free(memory_);
    } else {
      kept_.in_use = false;
    }
  }
  ScratchUse(const ScratchUse&) = delete;
  ScratchUse& operator=(const ScratchUse&) = delete;
  void* memory() const { return memory_; }

 private:
  Scratch& kept_;
  const bool nested_;
  void* memory_;
};

// Rounding to nearest, no flushing to zero, no traps. A thread starts with this mode, unless its
// creator had another.
class DefaultFloats {
 public:
#if defined(__x86_64__)
  DefaultFloats() : before_(__builtin_ia32_stmxcsr()) {
    if (differs()) __builtin_ia32_ldmxcsr(kDefault);
  }
  ~DefaultFloats() {
    if (differs()) __builtin_ia32_ldmxcsr(before_);
  }

 private:
  static constexpr unsigned kDefault = 0x1f80;
  static constexpr unsigned kSticky = 0x3f;  // flags of exceptions that have occurred
  bool differs() const { return (before_ & ~kSticky) != kDefault; }
  const unsigned before_;
#elif defined(__aarch64__)
  DefaultFloats() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    if (before_ != 0) __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
  }
  ~DefaultFloats() {
    if (before_ != 0) __asm__ volatile("msr fpcr, %0" : : "r"(before_));
  }

 private:
  uint64_t before_ = 0;
#endif
};

constexpr const char* kThreadsVariable = "BARACUDA_NUM_THREADS";

// The number of threads in the environment variable; 0 if it is not set, -1 if it is not valid.
int32_t wished_threads() {
  const char* wish = std::getenv(kThreadsVariable);
  if (wish == nullptr || *wish == '\0') return 0;
  char* end = nullptr;
  const long threads = std::strtol(wish, &end, 10);
  return *end == '\0' && threads >= 1 && threads <= kMaxThreads ? static_cast<int32_t>(threads) : -1;
}

int32_t affine_threads() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) {
    const int count = CPU_COUNT(&cpus);
    if (count >= 1) return count < kMaxThreads ? count : kMaxThreads;
  }
  const unsigned count = std::thread::hardware_concurrency();  // more CPUs than a cpu_set_t holds
  return count < 1 ? 1 : count < kMaxThreads ? static_cast<int32_t>(count) : kMaxThreads;
}

int32_t default_threads() {
  const int32_t wished = wished_threads();
  if (wished > 0) return wished;
  const int32_t threads = affine_threads();
  // With more threads than the quota, all of them are stopped once it is used up.
  const double quota = cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup");
  const double paid = std::ceil(quota);
  return paid >= 1 && paid < threads ? static_cast<int32_t>(paid) : threads;
}

thread_local baracuda_progress* watched = nullptr;

void tell(int64_t& word, int64_t value) { __atomic_store_n(&word, value, __ATOMIC_RELAXED); }

// Reports the progress of one call to the struct that baracuda_watch_progress() set, if any.
class ProgressScope {
 public:
  explicit ProgressScope(int64_t total) : progress_(watched) {
    watched = nullptr;  // steps of a signal handler are not watched
    if (progress_ == nullptr) return;
    tell(progress_->done, 0);
    tell(progress_->total, total);
  }
  ~ProgressScope() {
    if (progress_ == nullptr) return;
    tell(progress_->total, 0);
    watched = progress_;
  }
  ProgressScope(const ProgressScope&) = delete;
  ProgressScope& operator=(const ProgressScope&) = delete;
  void begin_item(int64_t item) const {
    if (progress_ != nullptr) tell(progress_->done, item);
  }

 private:
  baracuda_progress* const progress_;
};

struct Job {
  Task task;
  void* context;
  int64_t count;
  const char* call;
  std::atomic<int64_t> next{0};
  std::atomic<int32_t> stopped{BARACUDA_OK};  // why its items end early
  const ProgressScope* progress;
  // Guarded by the pool's mutex:
  int helpers = 0;  // pool threads inside
  Job* behind = nullptr;

  void run_item(int64_t i, void* scratch, bool (*ask)(void*)) {
    task(context, i, scratch, {ask, this});
  }
};

// The stop check of an item on a thread of the pool.
bool is_stopped(void* context) {
  return static_cast<Job*>(context)->stopped.load(std::memory_order_relaxed) != BARACUDA_OK;
}

// The stop check of an item on the caller's thread, which checks for signals and aborts for all.
bool poll_job(void* context) {
  Job& job = *static_cast<Job*>(context);
  if (is_stopped(context)) return true;
  const int32_t status = poll_stop(job.call);
  if (status == BARACUDA_OK) return false;
  job.stopped.store(status, std::memory_order_relaxed);
  job.next.store(job.count);
  return true;
}

class ThreadPool {
 public:
  explicit ThreadPool(int32_t threads) : threads_(threads) {}

  int32_t threads() const { return threads_.load(); }

  void start() {
    if (started_.load(std::memory_order_acquire)) return;
    std::lock_guard<std::mutex> resizing(resize_);
    if (started_.load(std::memory_order_relaxed) || closed_) return;
    for (int32_t i = 1; i < threads_.load(); ++i) {
      try {
        workers_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        break;  // fewer threads are slower, not wrong
      }
    }
    started_.store(true, std::memory_order_release);
  }

  void resize(int32_t threads) {
    std::lock_guard<std::mutex> resizing(resize_);
    stop();
    threads_.store(threads);
  }

  void close() {
    std::lock_guard<std::mutex> resizing(resize_);
    closed_ = true;
    stop();
  }

  void run(Job& job, void* scratch) {
    start();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Job** end = &jobs_;
      while (*end != nullptr) end = &(*end)->behind;
      *end = &job;
    }
    work_.notify_all();
    // The caller never stops early: its job ends even if the pool is closed under it.
    for (int64_t i = job.next++; i < job.count; i = job.next++) {
      job.progress->begin_item(i);
      job.run_item(i, scratch, poll_job);
    }
    std::unique_lock<std::mutex> lock(mutex_);
    forget(&job);
    // The helpers' last items may take long. A signal or an abort ends them early.
    while (!left_.wait_for(lock, kLookForSignals, [&job] { return job.helpers == 0; })) {
      lock.unlock();  // a signal's handler may run a step
      poll_job(&job);
      lock.lock();
    }
  }

 private:
  void work() {
    void* scratch = thread_scratch().memory;
    if (scratch == nullptr) return;
    const DefaultFloats floats;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stopping_ || jobs_ != nullptr; });
      if (stopping_) return;
      Job* job = jobs_;
      ++job->helpers;
      lock.unlock();
      while (!stopping_.load(std::memory_order_relaxed)) {
        const int64_t i = job->next++;
        if (i >= job->count) break;
        job->run_item(i, scratch, is_stopped);
      }
      lock.lock();
      if (job->next.load() >= job->count) forget(job);
      if (--job->helpers == 0) left_.notify_all();
    }
  }

  void forget(Job* job) {
    Job** link = &jobs_;
    while (*link != nullptr && *link != job) link = &(*link)->behind;
    if (*link == job) *link = job->behind;
  }

  void stop() {  // under resize_
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
    started_.store(false, std::memory_order_release);
  }

  std::mutex resize_;  // starting and stopping threads
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable left_;
  Job* jobs_ = nullptr;  // oldest first; a linked list, so that a step allocates nothing
  std::vector<std::thread> workers_;
  std::atomic<int32_t> threads_;
  std::atomic<bool> started_{false};
  std::atomic<bool> stopping_{false};
  bool closed_ = false;
};

std::atomic<ThreadPool*> current_pool{nullptr};

// A forked child has none of its parent's threads, and one of them may hold the old pool's locks.
// So the child leaves that pool alone and starts a new one.
void renew_after_fork() {
  ThreadPool* old = current_pool.load();
  if (old != nullptr) current_pool.store(new ThreadPool(old->threads()));
}

// Never destroyed: a daemon thread may still be inside a step while the process exits.
ThreadPool& pool() {
  static const bool created = [] {
    current_pool.store(new ThreadPool(default_threads()));
    pthread_atfork(nullptr, nullptr, renew_after_fork);
    std::atexit([] { current_pool.load()->close(); });
    return true;
  }();
  static_cast<void>(created);
  return *current_pool.load();
}

}  // namespace

int32_t parallel_for(int64_t count, Task task, void* context, const char* call) {
  const ScratchUse scratch;
  if (scratch.memory() == nullptr) return BARACUDA_OUT_OF_MEMORY;
  const DefaultFloats floats;
  const StopScope scope(nullptr);
  const ProgressScope progress(count);
  Job job;
  job.progress = &progress;
  job.task = task;
  job.context = context;
  job.count = count;
  job.call = call;
  ThreadPool& threads = pool();
  if (count > 1 && threads.threads() > 1) {
    threads.run(job, scratch.memory());
  } else {
    for (int64_t i = job.next++; i < count; i = job.next++) {
      progress.begin_item(i);
      job.run_item(i, scratch.memory(), poll_job);
    }
  }
  return job.stopped.load(std::memory_order_relaxed);
}

int32_t check_threads_variable(const char* call) {
  if (wished_threads() >= 0) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call, "%s: got %.40s, must be an integer in [1, %d]",
              kThreadsVariable, std::getenv(kThreadsVariable), kMaxThreads);
}

bool start_threads() {
  pool().start();
  return thread_scratch().memory != nullptr;
}

int32_t thread_count() { return pool().threads(); }

void set_thread_count(int32_t threads) {
  pool().resize(threads < kMaxThreads ? threads : kMaxThreads);
}

}  // namespace host
}  // namespace baracuda

extern "C" void baracuda_watch_progress(baracuda_progress* progress) {
  baracuda::host::watched = progress;
}
