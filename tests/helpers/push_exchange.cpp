// An exchange by push, on simulated streams: the receiver grants its buffers, the sender's stream
// writes into them, and words tell that they are free or full. It implements the loop's exchange
// interface as copy engines between the GPUs of one host would, without a transport. One thread
// drives all ranks, for one run of a world.
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace {

using Enqueue = void (*)(void* stream, const char* what, int32_t (*may_run)(void*),
                         void (*work)(void*), void (*destroy)(void*), void* data);

// Of one sender, one receiver and one round.
struct Words {
  std::vector<void*> buffers;
  bool is_free = false;
  bool is_full = false;
};

struct World {
  Enqueue enqueue;
  int dropped;  // the wait for a word, counted from 0, that is left out
  int waits = 0;
  std::map<std::tuple<int32_t, int32_t, int32_t>, Words> words;       // receiver, sender, round
  std::map<std::tuple<int32_t, int32_t>, std::vector<int32_t>> senders;  // receiver, round
  std::map<int32_t, int32_t> last_round;  // of each rank; numbers may be left out
};

World& world_of(baracuda_ring_endpoint* end) {
  return *static_cast<World*>(end->exchange_context);
}

struct Task {
  Words* words;
  bool waits;
  std::vector<baracuda_ring_message> messages;
};

void enqueue(World& world, void* stream, const char* what, int32_t (*may_run)(void*),
             void (*work)(void*), Words& words, std::vector<baracuda_ring_message> messages = {}) {
  const bool waits = may_run != nullptr && world.waits++ != world.dropped;
  world.enqueue(stream, what, may_run, work,
                [](void* data) { delete static_cast<Task*>(data); },
                new Task{&words, waits, std::move(messages)});
}

Task& as_task(void* data) { return *static_cast<Task*>(data); }
int32_t is_free(void* data) { return !as_task(data).waits || as_task(data).words->is_free; }
int32_t is_full(void* data) { return !as_task(data).waits || as_task(data).words->is_full; }
void set_free(void* data) { as_task(data).words->is_free = true; }
void nothing(void*) {}
void push(void* data) {
  const Task& task = as_task(data);
  for (size_t i = 0; i < task.messages.size(); ++i) {
    const baracuda_ring_message& message = task.messages[i];
    std::memcpy(task.words->buffers[i], message.data, static_cast<size_t>(message.bytes));
  }
  task.words->is_full = true;
}

int32_t grant(baracuda_ring_endpoint* end, const baracuda_ring_round* round) {
  World& world = world_of(end);
  const int32_t rank = end->transport.rank;
  // After this rank's own pushes, which may read these buffers.
  const int32_t status = end->ops->wait(end->ring_stream, round->ready);
  if (status != BARACUDA_OK) return status;
  std::map<int32_t, Words*> granted;
  for (int32_t i = 0; i < round->receive_count; ++i) {
    const baracuda_ring_message& message = round->receives[i];
    Words& words = world.words[{rank, message.peer, round->number}];
    words.buffers.push_back(message.data);
    granted[message.peer] = &words;
  }
  for (const auto& [peer, words] : granted) {
    world.senders[{rank, round->number}].push_back(peer);
    enqueue(world, end->ring_stream, "grant", nullptr, set_free, *words);
  }
  return BARACUDA_OK;
}

void await_full(World& world, int32_t rank, int32_t number, void* stream) {
  for (const int32_t peer : world.senders[{rank, number}]) {
    enqueue(world, stream, "await", is_full, nothing, world.words[{rank, peer, number}]);
  }
}

int32_t open(baracuda_ring_endpoint*) { return BARACUDA_OK; }

int32_t post(baracuda_ring_endpoint* end, const baracuda_ring_round* round) {
  World& world = world_of(end);
  const int32_t rank = end->transport.rank;
  // This round may send what the previous round received.
  const auto before = world.last_round.find(rank);
  if (before != world.last_round.end()) await_full(world, rank, before->second, end->ring_stream);
  world.last_round[rank] = round->number;
  std::map<int32_t, std::vector<baracuda_ring_message>> by_peer;
  for (int32_t i = 0; i < round->send_count; ++i) {
    by_peer[round->sends[i].peer].push_back(round->sends[i]);
  }
  for (const auto& [peer, messages] : by_peer) {
    enqueue(world, end->ring_stream, "push", is_free, push, world.words[{peer, rank, round->number}],
            messages);
  }
  return BARACUDA_OK;
}

int32_t close(baracuda_ring_endpoint*) { return BARACUDA_OK; }

int32_t complete(baracuda_ring_endpoint* end, const baracuda_ring_round* round) {
  return end->ops->record(end->exchange_done[round->number & 3], end->ring_stream);
}

// Waits for this rank's pushes, and for the pushes to this rank.
int32_t wait(baracuda_ring_endpoint* end, int32_t number, void* stream) {
  await_full(world_of(end), end->transport.rank, number, stream);
  return end->ops->wait(stream, end->exchange_done[number & 3]);
}

int32_t join(baracuda_ring_endpoint*, void*) { return BARACUDA_OK; }

const baracuda_ring_exchange exchange = {
    sizeof(baracuda_ring_exchange), "push", nullptr, grant, open, post, close, complete, wait, join,
    nullptr, nullptr, nullptr};

}  // namespace

extern "C" {

const baracuda_ring_exchange* push_exchange() { return &exchange; }
void* push_world(Enqueue enqueue, int dropped) { return new World{enqueue, dropped}; }
int push_waits(void* world) { return static_cast<World*>(world)->waits; }
void push_world_destroy(void* world) { delete static_cast<World*>(world); }

}  // extern "C"
