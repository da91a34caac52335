#include "ring/exchange/local/group.h"

#include <algorithm>
#include <new>

#include "common/error.h"
#include "common/interrupt.h"
#include "ring/exchange/local/world.h"

namespace baracuda {

// A thread's open group: its depth (groups nest, as in NCCL) and its ranks.
struct LocalGroup {
  int32_t depth = 0;
  baracuda_local_world* world = nullptr;
  LocalRank* ranks = nullptr;
  LocalRank** end = &ranks;
  baracuda_error failure{};  // the first failed send or receive; the group then moves nothing
  bool acting = false;       // in Exchange::execute(); a signal handler must not open a group now
};

namespace {

using Lock = std::unique_lock<std::mutex>;

thread_local LocalGroup open_group;

int32_t fail_at(const LocalRank& rank, int32_t status) {
  locate_failure(rank.rank, -1);
  return status;
}

// Returns the status of a stream operation. After a failure it adds the rank to the error record.
// A function of a caller's own table may leave no error record; then this makes one.
int32_t check_op(const LocalRank& rank, int32_t status, const char* call) {
  return status == BARACUDA_OK ? status : fail_at(rank, with_record(status, call));
}

int32_t join_group(LocalGroup& group, LocalRank& rank) {
  constexpr const char* call = "local group_start";
  const Lock lock(rank.world->mutex);
  if (rank.group == &group) return BARACUDA_OK;
  const int32_t status = rank.world->refuse(call, rank.rank);
  if (status != BARACUDA_OK) return status;
  if (rank.group != nullptr) {
    return fail_at(rank, fail(BARACUDA_INVALID_ARGUMENT, call,
                              "rank: got %d in a group of another thread, must be in none",
                              rank.rank));
  }
  if (group.world != nullptr && group.world != rank.world) {
    return fail_at(rank, fail(BARACUDA_INVALID_ARGUMENT, call,
                              "rank: got %d of another world, must be of the group's world",
                              rank.rank));
  }
  group.world = rank.world;
  rank.group = &group;
  rank.next_in_group = nullptr;
  rank.sends.clear();
  rank.receives.clear();
  *group.end = &rank;
  group.end = &rank.next_in_group;
  return BARACUDA_OK;
}

// Closes the group. The ranks' lists keep their memory, so that later groups allocate nothing.
void leave_group(LocalGroup& group) {
  if (group.world != nullptr) {
    const Lock lock(group.world->mutex);
    for (LocalRank* rank = group.ranks; rank != nullptr; rank = rank->next_in_group) {
      rank->group = nullptr;
    }
  }
  group = LocalGroup();
  group.end = &group.ranks;
}

int32_t check_message(const LocalRank& rank, const char* call, int64_t bytes, int32_t peer,
                      void* stream) {
  const int32_t world_size = static_cast<int32_t>(rank.world->ranks.size());
  if (peer < 0 || peer >= world_size) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "peer: got %d, must be in [0, %d)", peer,
                world_size);
  }
  if (bytes < 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "bytes: got %lld, must be at least 0",
                static_cast<long long>(bytes));
  }
  if (rank.sends.empty() && rank.receives.empty()) return BARACUDA_OK;
  if (stream != rank.stream) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "stream: got a second one for rank %d, must be one for all its messages in a group",
                rank.rank);
  }
  return BARACUDA_OK;
}

// Appends a message to one of the rank's lists. Outside a group, the message is a group by itself.
template <typename Message>
int32_t enqueue(LocalRank& rank, std::vector<Message>& list, const Message& message,
                const char* call, void* stream) {
  LocalGroup& group = open_group;
  const bool alone = group.depth == 0;
  int32_t status = alone ? local_group_start(&rank) : BARACUDA_OK;
  if (status != BARACUDA_OK) return status;
  if (rank.group != &group) {
    status = fail(BARACUDA_INVALID_ARGUMENT, call,
                  "rank: got %d outside the open group, must be in it", rank.rank);
  } else {
    status = check_message(rank, call, message.bytes, message.peer, stream);
  }
  if (status == BARACUDA_OK) {
    rank.stream = stream;
    try {
      list.push_back(message);
    } catch (const std::bad_alloc&) {
      status = fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for a message");
    }
  }
  if (status != BARACUDA_OK) {
    fail_at(rank, status);
    if (group.failure.status == BARACUDA_OK) group.failure = *baracuda_last_error();
  }
  if (!alone) return status;
  const int32_t closed = local_group_end(&rank);
  return status != BARACUDA_OK ? status : closed;
}

// Waits until ready() or until the world is aborted. Returns BARACUDA_OK also when the deadline
// passes; *in_time is then false. Returns BARACUDA_INTERRUPTED after a signal.
template <typename Ready>
int32_t wait_until(baracuda_local_world& world, LocalRank& rank, Lock& lock,
                   baracuda_local_world::Clock::time_point deadline, const char* call, Ready ready,
                   bool* in_time) {
  using Clock = baracuda_local_world::Clock;
  const auto done = [&world, &ready] { return world.aborted != 0 || ready(); };
  *in_time = true;
  if (done()) return BARACUDA_OK;
  const bool looks = is_interruptible();
  if (!looks && deadline == Clock::time_point::max()) {
    rank.changed.wait(lock, done);
    return BARACUDA_OK;
  }
  const StopScope scope(nullptr);
  for (;;) {
    const auto until = looks ? std::min(deadline, Clock::now() + kLookForSignals) : deadline;
    if (rank.changed.wait_until(lock, until, done)) return BARACUDA_OK;
    *in_time = until != deadline;
    if (!*in_time) return BARACUDA_OK;
    lock.unlock();
    const int32_t status = poll_stop(call);
    lock.lock();
    if (status != BARACUDA_OK) return status;
  }
}

// Moves the messages of a thread's group when the group is closed. The sends of all its ranks are
// posted before the first wait, so ranks driven by one thread never wait for each other.
class Exchange {
 public:
  explicit Exchange(LocalGroup& group)
      : group_(group), world_(*group.world), deadline_(world_.deadline()) {}

  int32_t execute() {
    int32_t status = group_.failure.status;
    if (status != BARACUDA_OK) {
      restore_failure(group_.failure);
      abort();
      return status;
    }
    expect_record();
    status = post();
    for (LocalRank* rank = group_.ranks; rank && status == BARACUDA_OK;
         rank = rank->next_in_group) {
      status = receive(*rank);
    }
    if (status != BARACUDA_OK) abort();
    const int32_t delivered = await_deliveries();
    if (status == BARACUDA_OK && delivered != BARACUDA_OK) {
      status = delivered;
      abort();
    }
    if (status != BARACUDA_OK) restore_failure(failure_);
    return status;
  }

 private:
  // Aborts the world, so that other threads do not wait for this thread's ranks for ever.
  void abort() {
    if (failure_.status == BARACUDA_OK) failure_ = *baracuda_last_error();
    const Lock lock(world_.mutex);
    world_.abort_with(failure_);
  }

  int32_t post() {
    for (LocalRank* rank = group_.ranks; rank != nullptr; rank = rank->next_in_group) {
      if (rank->sends.empty()) continue;
      const int32_t status =
          check_op(*rank, rank->ops->record(rank->ready, rank->stream), "record");
      if (status != BARACUDA_OK) return status;
    }
    const Lock lock(world_.mutex);
    const int32_t status = world_.refuse("local group_end", group_.ranks->rank);
    if (status != BARACUDA_OK) return status;
    posted_ = true;
    for (LocalRank* rank = group_.ranks; rank != nullptr; rank = rank->next_in_group) {
      for (LocalSend& send : rank->sends) {
        LocalRank& receiver = world_.ranks[static_cast<size_t>(send.peer)];
        LocalSend** end = &receiver.inbox;
        while (*end != nullptr) end = &(*end)->next;
        *end = &send;
        receiver.changed.notify_all();
      }
    }
    return BARACUDA_OK;
  }

  int32_t receive(LocalRank& rank) {
    int32_t status = BARACUDA_OK;
    size_t taken = 0;
    size_t copies = 0;
    for (; taken < rank.receives.size() && status == BARACUDA_OK; ++taken) {
      LocalReceive& into = rank.receives[taken];
      status = take(rank, into);
      if (status != BARACUDA_OK) break;
      const LocalSend& message = *into.message;
      if (message.bytes != into.bytes) {
        status = fail(BARACUDA_INVALID_ARGUMENT, "local recv",
                      "rank %d expects %lld bytes from rank %d, which sends %lld: the problems of "
                      "the ranks differ",
                      rank.rank, static_cast<long long>(into.bytes), into.peer,
                      static_cast<long long>(message.bytes));
        continue;
      }
      const bool same_sender = copies > 0 && rank.receives[taken - 1].peer == into.peer;
      if (!same_sender) {
        status = check_op(rank, rank.ops->wait(rank.stream, message.sender->ready), "wait");
      }
      if (status != BARACUDA_OK) continue;
      ++copies;
      status = check_op(rank, rank.ops->copy(into.data, message.data, into.bytes, rank.stream),
                        "copy");
    }
    if (status != BARACUDA_OK) {
      fail_at(rank, status);
      failure_ = *baracuda_last_error();
    }
    const int32_t joined = copies > 0 ? hold_senders(rank, taken) : BARACUDA_OK;
    release(rank, taken);
    return status != BARACUDA_OK ? status : joined;
  }

  // The link that points to the oldest message from peer, or the last link of the inbox.
  static LocalSend** find(LocalRank& rank, int32_t peer) {
    LocalSend** link = &rank.inbox;
    while (*link != nullptr && (*link)->sender->rank != peer) link = &(*link)->next;
    return link;
  }

  int32_t take(LocalRank& rank, LocalReceive& into) {
    Lock lock(world_.mutex);
    bool in_time = true;
    int32_t status = wait_until(
        world_, rank, lock, deadline_, "local recv",
        [&rank, &into] { return *find(rank, into.peer) != nullptr; }, &in_time);
    if (status == BARACUDA_OK) status = world_.refuse("local recv", rank.rank);
    if (status != BARACUDA_OK) return status;
    if (!in_time) {
      return fail(BARACUDA_TIMEOUT, "local recv",
                  "rank %d waited %g s for a message from rank %d", rank.rank,
                  world_.timeout_seconds, into.peer);
    }
    LocalSend** link = find(rank, into.peer);
    into.message = *link;
    into.message->state = LocalSend::kTaken;
    *link = into.message->next;
    return BARACUDA_OK;
  }

  // The senders' streams wait for `done` of this rank, because a send is complete only when its
  // data is copied. The waits are enqueued before the messages are released. A sender stays in its
  // group until its messages are released, so it cannot record `ready` again before every receiver
  // has enqueued its wait for `ready`.
  int32_t hold_senders(LocalRank& rank, size_t taken) {
    int32_t status = check_op(rank, rank.ops->record(rank.done, rank.stream), "record");
    for (size_t i = 0; i < taken && status == BARACUDA_OK; ++i) {
      if (i > 0 && rank.receives[i].peer == rank.receives[i - 1].peer) continue;
      const LocalRank& sender = *rank.receives[i].message->sender;
      status = check_op(rank, sender.ops->wait(sender.stream, rank.done), "wait");
    }
    return status;
  }

  void release(LocalRank& rank, size_t taken) {
    const Lock lock(world_.mutex);
    for (size_t i = 0; i < taken; ++i) {
      LocalSend& message = *rank.receives[i].message;
      message.state = LocalSend::kDelivered;
      message.sender->changed.notify_all();
    }
  }

  int32_t await_deliveries() {
    if (!posted_) return BARACUDA_OK;
    int32_t status = BARACUDA_OK;
    Lock lock(world_.mutex);
    for (LocalRank* rank = group_.ranks; rank != nullptr; rank = rank->next_in_group) {
      for (LocalSend& send : rank->sends) {
        const auto delivered = [&send] { return send.state == LocalSend::kDelivered; };
        bool in_time = true;
        const int32_t interrupted =
            wait_until(world_, *rank, lock, deadline_, "local send", delivered, &in_time);
        // If the receiver is copying the data, the buffer is in use until the receiver releases the
        // message.
        rank->changed.wait(lock, [&send] { return send.state != LocalSend::kTaken; });
        if (delivered() || status != BARACUDA_OK) continue;
        status = interrupted;
        if (status == BARACUDA_OK) status = world_.refuse("local send", rank->rank);
        if (status == BARACUDA_OK && !in_time) {
          status = fail(BARACUDA_TIMEOUT, "local send",
                        "rank %d waited %g s for rank %d to receive its message", rank->rank,
                        world_.timeout_seconds, send.peer);
          fail_at(*rank, status);
        }
        // After the abort no rank takes a message that is still in its inbox.
        if (status != BARACUDA_OK) world_.abort_with(*baracuda_last_error());
      }
    }
    return status;
  }

  LocalGroup& group_;
  baracuda_local_world& world_;
  const baracuda_local_world::Clock::time_point deadline_;
  bool posted_ = false;
  baracuda_error failure_{};
};

}  // namespace

int32_t local_group_start(void* context) {
  LocalGroup& group = open_group;
  if (group.acting) {
    return fail_at(*static_cast<LocalRank*>(context),
                   fail(BARACUDA_INVALID_ARGUMENT, "local group_start",
                        "this thread is already in an exchange: a signal handler cannot run a "
                        "ring"));
  }
  const int32_t status = join_group(group, *static_cast<LocalRank*>(context));
  if (status == BARACUDA_OK) ++group.depth;
  return status;
}

int32_t local_send(void* context, const void* data, int64_t bytes, int32_t peer, void* stream) {
  LocalRank& rank = *static_cast<LocalRank*>(context);
  const LocalSend send = {data, bytes, peer, LocalSend::kPosted, &rank, nullptr};
  return enqueue(rank, rank.sends, send, "local send", stream);
}

int32_t local_recv(void* context, void* data, int64_t bytes, int32_t peer, void* stream) {
  LocalRank& rank = *static_cast<LocalRank*>(context);
  const LocalReceive receive = {data, bytes, peer, nullptr};
  return enqueue(rank, rank.receives, receive, "local recv", stream);
}

int32_t local_group_end(void* context) {
  LocalGroup& group = open_group;
  if (group.depth == 0) {
    return fail_at(*static_cast<LocalRank*>(context),
                   fail(BARACUDA_INVALID_ARGUMENT, "local group_end", "no group is open"));
  }
  if (--group.depth > 0) return BARACUDA_OK;
  group.acting = true;
  const int32_t status = Exchange(group).execute();
  leave_group(group);
  return status;
}

void local_abort(void* context) {
  baracuda_local_world& world = *static_cast<LocalRank*>(context)->world;
  const Lock lock(world.mutex);
  world.abort_with(*baracuda_last_error());
}

}  // namespace baracuda
