#include "attention/forward/host/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "attention/forward/host/block.h"

namespace baracuda {
namespace host {
namespace {

constexpr int32_t kMaxThreads = 1024;

struct Scratch {
  void* memory = nullptr;
  ~Scratch() { std::free(memory); }
};

// Taken at a thread's first use and kept, so that later steps do not allocate.
void* thread_scratch() {
  static thread_local Scratch scratch;
  if (scratch.memory == nullptr) scratch.memory = std::aligned_alloc(64, kScratchBytes);
  return scratch.memory;
}

int32_t default_threads() {
  if (const char* wish = std::getenv("BARACUDA_NUM_THREADS")) {
    const long threads = std::strtol(wish, nullptr, 10);
    if (threads >= 1 && threads <= kMaxThreads) return static_cast<int32_t>(threads);
  }
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) {
    const int count = CPU_COUNT(&cpus);
    if (count >= 1) return count < kMaxThreads ? count : kMaxThreads;
  }
  const unsigned count = std::thread::hardware_concurrency();  // more CPUs than a cpu_set_t holds
  return count < 1 ? 1 : count < kMaxThreads ? static_cast<int32_t>(count) : kMaxThreads;
}

struct Job {
  Task task;
  void* context;
  int64_t count;
  std::atomic<int64_t> next{0};
  // Guarded by the pool's mutex:
  int helpers = 0;  // pool threads inside
  Job* behind = nullptr;
};

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
      job.task(job.context, i, scratch);
    }
    std::unique_lock<std::mutex> lock(mutex_);
    forget(&job);
    left_.wait(lock, [&job] { return job.helpers == 0; });
  }

 private:
  void work() {
    void* scratch = thread_scratch();
    if (scratch == nullptr) return;
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
        job->task(job->context, i, scratch);
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
  Job* jobs_ = nullptr;  // first come, first helped; a list, so that a step allocates nothing
  std::vector<std::thread> workers_;
  std::atomic<int32_t> threads_;
  std::atomic<bool> started_{false};
  std::atomic<bool> stopping_{false};
  bool closed_ = false;
};

std::atomic<ThreadPool*> current_pool{nullptr};

// A child has none of its parent's threads, and the old pool's locks may be held by one of them:
// leave that pool alone and begin anew.
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

bool parallel_for(int64_t count, Task task, void* context) {
  void* scratch = thread_scratch();
  if (scratch == nullptr) return false;
  ThreadPool& threads = pool();
  if (count <= 1 || threads.threads() == 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i, scratch);
    return true;
  }
  Job job;
  job.task = task;
  job.context = context;
  job.count = count;
  threads.run(job, scratch);
  return true;
}

bool start_threads() {
  pool().start();
  return thread_scratch() != nullptr;
}

int32_t thread_count() { return pool().threads(); }

void set_thread_count(int32_t threads) {
  pool().resize(threads < kMaxThreads ? threads : kMaxThreads);
}

}  // namespace host
}  // namespace baracuda
