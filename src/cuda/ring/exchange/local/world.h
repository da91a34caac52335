// The shared state of a local ring: P virtual ranks in one process. A thread drives one rank or
// several.
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

// The sending rank keeps a send until the receiver has copied it, so an inbox only links sends. A
// rank is in one group at a time, and leaves it when none of its sends is in use.
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
  // Signals a message to this rank, or the delivery of one of its own.
  std::condition_variable changed;

  // The open group. Only the thread that opened it uses these.
  LocalGroup* group = nullptr;  // guarded by the world's mutex
  LocalRank* next_in_group = nullptr;
  void* stream = nullptr;
  std::vector<LocalSend> sends;
  std::vector<LocalReceive> receives;
};

}  // namespace baracuda

struct baracuda_local_world {
  using Clock = std::chrono::steady_clock;

  explicit baracuda_local_world(int32_t size, double timeout);

  // With the mutex held. Fails every waiting and later call; keeps the first reason.
  void abort_with(const baracuda_error& reason);
  // With the mutex held: BARACUDA_OK, or the failure of an aborted world.
  int32_t refuse(const char* call, int32_t rank) const;
  Clock::time_point deadline() const;

  const double timeout_seconds;
  std::mutex mutex;
  int32_t aborted = 0;  // read without the mutex by runs that compute
  baracuda_error abort_reason{};
  std::vector<baracuda::LocalRank> ranks;
};
