// A local ring's shared state: P virtual ranks in one process. A thread drives one rank or several.
#pragma once

#include <stdint.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "baracuda/exchange.h"
#include "baracuda/status.h"

namespace baracuda {

struct LocalGroup;

// A LocalSend is an entry of the sender's list. It stays there until the receiver has enqueued its
// copy of the data (on the CPU: has copied the data). An inbox is a linked list of such entries. A
// rank is in one group at a time, and leaves the group when none of its sends is in use.
struct LocalSend {
  enum State { kPosted, kTaken, kDelivered };
  const void* data;
  int64_t bytes;
  int32_t peer;
  State state;
  struct LocalRank* sender;
  LocalSend* next;
};

struct LocalReceive {
  void* data;
  int64_t bytes;
  int32_t peer;
  LocalSend* message;
};

struct LocalRank {
  baracuda_local_world* world = nullptr;
  int32_t rank = -1;
  const baracuda_stream_ops* ops = nullptr;
  void* ready = nullptr;  // event: this rank's data may be read
  void* done = nullptr;   // event: this rank has received its data
  // Messages to this rank that it has not taken yet, oldest first; guarded by the world's mutex.
  LocalSend* inbox = nullptr;
  // Notified when a message to this rank is posted, when one of its own is delivered, and when the
  // world is aborted.
  std::condition_variable changed;

  // The state of the open group. Except `group`, which the world's mutex guards, only the thread
  // that opened the group uses it.
  LocalGroup* group = nullptr;
  LocalRank* next_in_group = nullptr;
  void* stream = nullptr;
  std::vector<LocalSend> sends;
  std::vector<LocalReceive> receives;
};

}  // namespace baracuda

struct baracuda_local_world {
  using Clock = std::chrono::steady_clock;

  explicit baracuda_local_world(int32_t size, double timeout);

  // The mutex must be held. Makes every waiting and later call fail. The first reason is kept.
  void abort_with(const baracuda_error& reason);
  // The mutex must be held. BARACUDA_OK, or BARACUDA_ABORTED with the reason of the abort.
  int32_t refuse(const char* call, int32_t rank) const;
  Clock::time_point deadline() const;

  const double timeout_seconds;
  std::mutex mutex;
  int32_t aborted = 0;  // also read without the mutex, by steps that compute on the host
  baracuda_error abort_reason{};
  std::vector<baracuda::LocalRank> ranks;
};
