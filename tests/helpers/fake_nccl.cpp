// A small NCCL for tests: host memory, the ranks of one process, one thread per rank or several
// ranks per thread. Groups block until their messages are exchanged, as a blocking communicator's
// do. Faults are injected per call, and misuse is counted.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Result { kSuccess = 0, kInternalError = 3, kInvalidArgument = 4, kInvalidUsage = 5 };

struct Comm;

struct Message {
  const void* data;
  size_t bytes;
  bool delivered = false;
};

struct World {
  int size = 0;
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> boxes;  // (from, to)
  // ncclCommSplit's meeting place.
  std::map<int, std::pair<int, int>> split;  // rank -> (color, key)
  int split_left = 0;
  int split_round = 0;
  std::map<int, std::shared_ptr<World>> children;  // by color
};

struct Comm {
  std::shared_ptr<World> world;
  int rank = 0;
  int device = 0;
  bool dead = false;     // destroyed or aborted: touching it is an error
  bool aborted = false;
  int async_error = kSuccess;
};

struct Op {
  Comm* comm;
  bool is_send;
  const void* from;
  void* into;
  size_t bytes;
  int peer;
};

struct Group {
  int depth = 0;
  int failed = kSuccess;
  std::vector<Op> ops;
  std::vector<std::function<int()>> inits;
  std::vector<Comm*> starting;
};

struct Fault {
  std::string call;
  int rank;  // -1: any
  int nth;   // counted from when it was set, the first is 1
  int result;
  bool hang;
};

std::mutex mutex;
std::condition_variable changed;
std::map<std::string, int64_t> counts;
std::map<std::string, std::shared_ptr<World>> worlds;  // by unique id
std::vector<std::unique_ptr<Comm>> comms;              // never freed before a reset: see `dead`
std::vector<Fault> faults;
int64_t ids = 0;
int64_t releases = 0;
int version = 22809;

thread_local Group group;

bool any_aborted(const std::vector<Comm*>& involved) {
  return std::any_of(involved.begin(), involved.end(), [](Comm* c) { return c->aborted; });
}

// Counts a call and applies its fault, if any. With the mutex held.
int enter(std::unique_lock<std::mutex>& lock, const char* call, const std::vector<Comm*>& involved) {
  ++counts[call];
  for (Comm* comm : involved) {
    if (comm->dead) {
      ++counts["use_after_free"];
      return kInvalidArgument;
    }
  }
  for (size_t i = 0; i < faults.size(); ++i) {
    const bool ours = faults[i].rank < 0 || std::any_of(involved.begin(), involved.end(), [&](Comm* c) {
                        return c->rank == faults[i].rank;
                      });
    if (faults[i].call != call || !ours || --faults[i].nth > 0) continue;
    const Fault fault = faults[i];
    faults.erase(faults.begin() + static_cast<std::ptrdiff_t>(i));
    if (!fault.hang) return fault.result;
    const int64_t before = releases;
    changed.wait(lock, [&] { return any_aborted(involved) || releases != before; });
    return kInternalError;
  }
  return kSuccess;
}

// Posts every send, then serves every receive, then waits for its own sends.
int exchange(std::unique_lock<std::mutex>& lock, const std::vector<Op>& ops,
             const std::vector<Comm*>& involved) {
  std::vector<std::shared_ptr<Message>> sent;
  for (const Op& op : ops) {
    if (!op.is_send) continue;
    auto message = std::make_shared<Message>(Message{op.from, op.bytes});
    op.comm->world->boxes[{op.comm->rank, op.peer}].push_back(message);
    sent.push_back(message);
  }
  changed.notify_all();
  for (const Op& op : ops) {
    if (op.is_send) continue;
    auto& box = op.comm->world->boxes[{op.peer, op.comm->rank}];
    changed.wait(lock, [&] { return !box.empty() || any_aborted(involved); });
    if (any_aborted(involved)) return kInternalError;
    const std::shared_ptr<Message> message = box.front();
    box.pop_front();
    if (message->bytes != op.bytes) return kInvalidUsage;
    std::memmove(op.into, message->data, op.bytes);
    message->delivered = true;
    changed.notify_all();
  }
  for (const auto& message : sent) {
    changed.wait(lock, [&] { return message->delivered || any_aborted(involved); });
    if (!message->delivered) return kInternalError;
  }
  return kSuccess;
}

int join(Comm* comm, const std::shared_ptr<World>& world) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "init", {comm});
  if (result != kSuccess) return result;
  ++world->joined;
  changed.notify_all();
  changed.wait(lock, [&] { return world->joined >= world->size || comm->aborted; });
  return comm->aborted ? kInternalError : kSuccess;
}

Comm* new_comm(const std::shared_ptr<World>& world, int rank) {
  comms.push_back(std::make_unique<Comm>());
  Comm* comm = comms.back().get();
  comm->world = world;
  comm->rank = rank;
  ++counts["comms_alive"];
  return comm;
}

int end(Comm* comm, const char* call, bool abort) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, call, {comm});
  if (result != kSuccess) return result;
  comm->dead = true;
  comm->aborted = abort;
  --counts["comms_alive"];
  changed.notify_all();
  return kSuccess;
}

}  // namespace

struct ncclUniqueId {
  char internal[128];
};

struct ncclConfig {
  size_t size;
  unsigned int magic;
  unsigned int version;
  int blocking;
  int cga_cluster_size;
  int min_ctas;
  int max_ctas;
};

extern "C" {

int ncclGetVersion(int* out) {
  *out = version;
  return kSuccess;
}

const char* ncclGetErrorString(int result) {
  switch (result) {
    case kSuccess: return "no error";
    case 1: return "unhandled cuda error";
    case 2: return "unhandled system error";
    case kInternalError: return "internal error";
    case kInvalidArgument: return "invalid argument";
    case kInvalidUsage: return "invalid usage";
    case 6: return "remote process exited or there was a network error";
    default: return "unknown result code";
  }
}

const char* ncclGetLastError(Comm*) { return "fake details"; }

int ncclGetUniqueId(ncclUniqueId* id) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "ncclGetUniqueId", {});
  if (result != kSuccess) return result;
  std::memset(id->internal, 0, sizeof(id->internal));
  // No other process has the same: the ranks' shared memory is named after it.
  const std::string text = "fake-" + std::to_string(getpid()) + "-" + std::to_string(++ids);
  std::memcpy(id->internal, text.c_str(), text.size());
  return kSuccess;
}

#ifndef FAKE_NCCL_OLD
int ncclCommInitRankConfig(Comm** out, int size, ncclUniqueId id, int rank, ncclConfig* config) {
  std::shared_ptr<World> world;
  Comm* comm = nullptr;
  {
    std::unique_lock<std::mutex> lock(mutex);
    int result = enter(lock, "ncclCommInitRankConfig", {});
    if (result == kSuccess && (config->magic != 0xcafebeef || config->size < 32)) {
      result = kInvalidArgument;
    }
    counts["max_ctas"] = config->max_ctas;
    counts["cga_cluster_size"] = config->cga_cluster_size;
    if (result != kSuccess) {
      group.failed = group.failed != kSuccess ? group.failed : result;
      return result;
    }
    auto& shared = worlds[id.internal];
    if (shared == nullptr) shared = std::make_shared<World>();
    shared->size = size;
    world = shared;
    comm = new_comm(world, rank);
  }
  __atomic_store_n(out, comm, __ATOMIC_RELEASE);
  if (group.depth == 0) return join(comm, world);
  group.inits.push_back([comm, world] {
    std::unique_lock<std::mutex> lock(mutex);
    const int result = enter(lock, "init", {comm});
    if (result == kSuccess) ++world->joined;
    changed.notify_all();
    return result;
  });
  group.starting.push_back(comm);
  return kSuccess;
}

int ncclCommSplit(Comm* parent, int color, int key, Comm** out, ncclConfig*) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "ncclCommSplit", {parent});
  if (result != kSuccess) return result;
  World& world = *parent->world;
  const int round = world.split_round;
  world.split[parent->rank] = {color, key};
  changed.notify_all();
  changed.wait(lock, [&] {
    return static_cast<int>(world.split.size()) == world.size || world.split_round != round ||
           parent->aborted;
  });
  if (parent->aborted) return kInternalError;
  if (color >= 0) {
    std::vector<std::pair<int, int>> members;  // (key, rank)
    for (const auto& [rank, choice] : world.split) {
      if (choice.first == color) members.push_back({choice.second, rank});
    }
    std::sort(members.begin(), members.end());
    auto& child = world.children[color];
    if (child == nullptr) child = std::make_shared<World>();
    child->size = static_cast<int>(members.size());
    const auto self = std::make_pair(key, parent->rank);
    const auto place = std::find(members.begin(), members.end(), self) - members.begin();
    __atomic_store_n(out, new_comm(child, static_cast<int>(place)), __ATOMIC_RELEASE);
  }
  if (++world.split_left == world.size) {
    world.split.clear();
    world.children.clear();
    world.split_left = 0;
    ++world.split_round;
    changed.notify_all();
  } else {
    changed.wait(lock, [&] { return world.split_round != round || parent->aborted; });
  }
  return kSuccess;
}
#endif

int ncclCommDestroy(Comm* comm) { return end(comm, "ncclCommDestroy", false); }
int ncclCommAbort(Comm* comm) { return end(comm, "ncclCommAbort", true); }

int ncclCommGetAsyncError(Comm* comm, int* error) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "ncclCommGetAsyncError", {comm});
  if (result == kSuccess) *error = comm->async_error;
  return result;
}

int ncclCommCount(Comm* comm, int* count) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "ncclCommCount", {comm});
  if (result == kSuccess) *count = comm->world->size;
  return result;
}

int ncclCommUserRank(Comm* comm, int* rank) {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "ncclCommUserRank", {comm});
  if (result == kSuccess) *rank = comm->rank;
  return result;
}

int ncclGroupStart() {
  std::unique_lock<std::mutex> lock(mutex);
  const int result = enter(lock, "ncclGroupStart", {});
  if (result != kSuccess) return result;
  ++group.depth;
  ++counts["open_groups"];
  return kSuccess;
}

int ncclGroupEnd() {
  std::unique_lock<std::mutex> lock(mutex);
  if (group.depth == 0) {
    ++counts["unopened_groups"];
    return kInvalidUsage;
  }
  --counts["open_groups"];
  if (--group.depth > 0) return kSuccess;
  const Group ended = std::move(group);
  group = Group();
  std::vector<Comm*> involved = ended.starting;
  for (const Op& op : ended.ops) involved.push_back(op.comm);
  int result = enter(lock, "ncclGroupEnd", involved);
  if (result == kSuccess) result = ended.failed;
  if (result != kSuccess) return result;
  lock.unlock();
  for (const auto& init : ended.inits) {
    const int failed = init();
    if (result == kSuccess) result = failed;
  }
  lock.lock();
  if (result != kSuccess) return result;
  for (Comm* comm : ended.starting) {
    changed.wait(lock, [&] { return comm->world->joined >= comm->world->size || comm->aborted; });
    if (comm->aborted) return kInternalError;
  }
  return exchange(lock, ended.ops, involved);
}

static int add(const char* call, Op op) {
  {
    std::unique_lock<std::mutex> lock(mutex);
    int result = enter(lock, call, {op.comm});
    if (result == kSuccess && (op.peer < 0 || op.peer >= op.comm->world->size)) {
      result = kInvalidArgument;
    }
    if (result != kSuccess) {
      if (group.depth > 0 && group.failed == kSuccess) group.failed = result;
      return result;
    }
    group.ops.push_back(op);
  }
  if (group.depth > 0) return kSuccess;
  ncclGroupStart();
  return ncclGroupEnd();
}

int ncclSend(const void* data, size_t count, int, int peer, Comm* comm, void*) {
  return add("ncclSend", {comm, true, data, nullptr, count, peer});
}

int ncclRecv(void* data, size_t count, int, int peer, Comm* comm, void*) {
  return add("ncclRecv", {comm, false, nullptr, data, count, peer});
}

// ---- Controls --------------------------------------------------------------------------------

// The nth call from now (of rank's communicator; -1: of any) returns result.
void fake_nccl_inject(const char* call, int rank, int nth, int result) {
  const std::lock_guard<std::mutex> lock(mutex);
  faults.push_back({call, rank, nth, result, false});
}

// The nth call from now blocks until its communicator is aborted or fake_nccl_release() is called.
// "init" is the blocking part of ncclCommInitRankConfig.
void fake_nccl_hang(const char* call, int rank, int nth) {
  const std::lock_guard<std::mutex> lock(mutex);
  faults.push_back({call, rank, nth, 0, true});
}

// Ends every call that hangs now.
void fake_nccl_release() {
  const std::lock_guard<std::mutex> lock(mutex);
  ++releases;
  changed.notify_all();
}

void fake_nccl_set_async_error(Comm* comm, int error) {
  const std::lock_guard<std::mutex> lock(mutex);
  comm->async_error = error;
}

// Calls by name; also comms_alive, open_groups, unopened_groups and use_after_free, and two fields
// of the last config: max_ctas and cga_cluster_size.
int64_t fake_nccl_count(const char* what) {
  const std::lock_guard<std::mutex> lock(mutex);
  return counts[what];
}

// Forgets faults and counts. No communicator may be alive.
void fake_nccl_reset() {
  const std::lock_guard<std::mutex> lock(mutex);
  counts.clear();
  faults.clear();
  worlds.clear();
  comms.clear();
}

}  // extern "C"
