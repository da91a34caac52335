// The rounds of the exchange by peer (copies into the next rank's memory). Ranks signal by words
// (host_file.h). The ring stream of every rank does this in each round:
//
//   wait for the event `ready`, or, if the round is signalled, for the word `read`; in a run's
//     first round also for the word `idle`, if the caller's stream waits by words
//   grant this rank's receive buffer to the previous rank: signal that it may write to the buffer
//     (if the buffer is free earlier, the grant comes before the wait)
//   wait for the next rank's grant; push (copy) the data to it; signal that its buffer is full
//   wait until this rank's receive buffer is full
//
// So a grant comes after this rank's last push from the buffer and the caller's last read of the
// buffer. If one of the rank's two hops is not by peer, its messages go by the transport's sends
// and receives.
//
// A word must have been reset before it is set again. The rank that sets it learns of the reset
// from another word of the hop. For example, the sender resets `granted` before it sets `full`, and
// the receiver grants again only after it has seen `full`. A stream takes about 3 us to write a
// word, so the writes for which no rank waits come as late as this rule allows.
#include "baracuda/status.h"
#include "common/error.h"
#include "ring/exchange/peer/peer.h"
#include "ring/exchange/peer/words.h"

namespace baracuda {
namespace {

using Endpoint = baracuda_ring_endpoint;
using Round = baracuda_ring_round;

baracuda_peer& peer_of(Endpoint* end) {
  return *static_cast<baracuda_peer*>(end->exchange_context);
}

PeerRound& round_at(baracuda_peer& peer, int32_t number) {
  return peer.rounds[number & (kPeerArrivals - 1)];
}

int32_t record(const Endpoint& end, void* event) {
  return with_record(end.ops->record(event, end.ring_stream), "record");
}

constexpr uint32_t kSet = 1;

int32_t grant(Endpoint* end, const Round* round) {
  baracuda_peer& peer = peer_of(end);
  int32_t status = peer.begin(*round);
  if (status != BARACUDA_OK) return status;
  const PeerRound& at = round_at(peer, round->number);
  const PeerHopWords& mine = peer.file.hop(peer.rank());
  // In a run's first round the grant comes after the wait for `ready`, because only `ready` shows
  // that earlier work has ended.
  const bool ahead = at.takes && !at.starts && round->free_ahead != 0;
  if (ahead) status = write_word(peer, end->ring_stream, mine.granted, at.granted);
  if (status != BARACUDA_OK) return status;
  if (round->signalled != 0) {
    status = take_word(peer, end->ring_stream, mine.read, kSet);
  } else {
    status = with_record(end->ops->wait(end->ring_stream, round->ready), "wait");
  }
  if (status == BARACUDA_OK && at.starts && at.takes && peer.wait != BARACUDA_PEER_WAIT_EVENT) {
    peer.in_run = true;
    status = await_word(peer, end->ring_stream, mine.idle, kSet);
  }
  // After both waits, so that a timeline does not count the end of an earlier run as an exchange.
  if (status == BARACUDA_OK && round->begin_mark != nullptr) {
    status = record(*end, round->begin_mark);
  }
  if (status != BARACUDA_OK || !at.takes || ahead) return status;
  return write_word(peer, end->ring_stream, mine.granted, at.granted);
}

int32_t open(Endpoint* end) {
  baracuda_peer& peer = peer_of(end);
  if (!round_at(peer, peer.last_number).transports) return BARACUDA_OK;
  return baracuda_send_recv_exchange()->open(end);
}

// One copy of rows of one size: at a fixed pitch at the source, contiguous at the target.
struct Copy {
  char* into = nullptr;
  const char* from = nullptr;
  int64_t bytes = 0;  // of a row
  int64_t pitch = 0;  // from one row to the next, at the source
  int32_t rows = 1;

  // Adds `other` as the next row, if it can be. Rows that are adjacent are not joined into one
  // longer row. The reason is that they may belong to two allocations, and a copy fails if one of
  // its rows spans two allocations.
  bool extend(const Copy& other) {
    if (bytes == 0 || other.into != into + rows * bytes) return false;
    const int64_t distance = other.from - (from + (rows - 1) * pitch);
    const bool is_row = other.bytes == bytes && distance >= bytes && distance < kMostPitch &&
                        (rows == 1 || distance == pitch);
    if (!is_row) return false;
    pitch = distance;
    ++rows;
    return true;
  }

 private:
  static constexpr int64_t kMostPitch = int64_t{1} << 31;
};

int32_t enqueue(const baracuda_peer& peer, const Copy& copy) {
  const Endpoint& end = peer.end;
  if (copy.bytes == 0) return BARACUDA_OK;
  if (copy.rows > 1 && peer.ops->copy_rows != nullptr &&
      peer.ops->copy_rows(copy.into, copy.from, copy.bytes, copy.pitch, copy.rows,
                          end.ring_stream) == BARACUDA_OK) {
    return BARACUDA_OK;
  }
  int32_t status = BARACUDA_OK;
  for (int32_t row = 0; row < copy.rows && status == BARACUDA_OK; ++row) {
    status = with_record(end.ops->copy(copy.into + row * copy.bytes, copy.from + row * copy.pitch,
                                       copy.bytes, end.ring_stream),
                         "copy");
  }
  return status;
}

int32_t push(baracuda_peer& peer, const PeerRound& at, const Round& round) {
  Endpoint& end = peer.end;
  const int32_t next = peer.next();
  const PeerHopWords& words = peer.file.hop(next);
  int32_t status = await_word(peer, end.ring_stream, words.granted, at.granted);
  Copy copy;
  for (int32_t i = 0; i < round.send_count && status == BARACUDA_OK; ++i) {
    const baracuda_ring_message& out = round.sends[i];
    if (out.peer != next) continue;
    // On every rank a message is received into the buffer with the same registration number, at the
    // same offset. So the address of this rank's receive gives the address at the next rank.
    const char* const mine = static_cast<const char*>(round.receives[i].data);
    const PeerBuffer& buffer = peer.buffers[static_cast<size_t>(peer.find(mine, out.bytes))];
    const Copy one{buffer.next + (mine - buffer.mine), static_cast<const char*>(out.data),
                   out.bytes};
    if (copy.extend(one)) continue;
    status = enqueue(peer, copy);
    copy = one;
  }
  if (status == BARACUDA_OK) status = enqueue(peer, copy);
  if (status != BARACUDA_OK) return status;
  // `arrived`, for which the next rank's step waits, is set first. `granted` is reset before `full`
  // is set: the next rank grants again after it has seen `full`, and must find `granted` reset.
  Writes writes;
  if (peer.next_wait != BARACUDA_PEER_WAIT_EVENT) {
    writes.add(peer, words.arrived[at.number & (kPeerArrivals - 1)], at.full);
  }
  writes.add(peer, words.granted, 0);
  writes.add(peer, words.full, at.full);
  return writes.enqueue(peer, end.ring_stream);
}

// Pushes to the next rank, and sends over the transport what does not go by peer.
int32_t post(Endpoint* end, const Round* round) {
  baracuda_peer& peer = peer_of(end);
  const PeerRound& at = round_at(peer, round->number);
  int32_t status = at.pushes ? push(peer, at, *round) : BARACUDA_OK;
  if (status != BARACUDA_OK || !at.transports) return status;
  Round rest = *round;
  rest.send_count = rest.receive_count = 0;
  for (int32_t i = 0; i < round->send_count; ++i) {
    if (at.pushes && round->sends[i].peer == peer.next()) continue;
    rest.sends[rest.send_count++] = round->sends[i];
  }
  for (int32_t i = 0; i < round->receive_count; ++i) {
    if (at.takes && round->receives[i].peer == peer.previous()) continue;
    rest.receives[rest.receive_count++] = round->receives[i];
  }
  return baracuda_send_recv_exchange()->post(end, &rest);
}

int32_t close(Endpoint* end) {
  baracuda_peer& peer = peer_of(end);
  if (!round_at(peer, peer.last_number).transports) return BARACUDA_OK;
  return baracuda_send_recv_exchange()->close(end);
}

int32_t complete(Endpoint* end, const Round* round) {
  baracuda_peer& peer = peer_of(end);
  const PeerRound& at = round_at(peer, round->number);
  if (!at.takes) return baracuda_send_recv_exchange()->complete(end, round);
  const PeerHopWords& mine = peer.file.hop(peer.rank());
  int32_t status = await_word(peer, end->ring_stream, mine.full, at.full);
  if (status == BARACUDA_OK && round->end_mark != nullptr) status = record(*end, round->end_mark);
  if (status != BARACUDA_OK) return status;
  // These resets come before the round's event, for which the caller's stream waits (at the latest
  // in finish()). So a capture includes them, and `idle` is reset before finish() sets it on the
  // caller's stream.
  Writes writes;
  writes.add(peer, mine.full, 0);
  if (at.starts && peer.wait != BARACUDA_PEER_WAIT_EVENT) writes.add(peer, mine.idle, 0);
  status = writes.enqueue(peer, end->ring_stream);
  if (status != BARACUDA_OK) return status;
  Round marked{};
  marked.number = round->number;
  return baracuda_send_recv_exchange()->complete(end, &marked);
}

int32_t wait(Endpoint* end, int32_t number, void* stream) {
  baracuda_peer& peer = peer_of(end);
  const PeerRound& at = round_at(peer, number);
  const bool by_word = peer.wait != BARACUDA_PEER_WAIT_EVENT && at.takes;
  if (!by_word) return baracuda_send_recv_exchange()->wait(end, number, stream);
  const PeerWord& word = peer.file.hop(peer.rank()).arrived[number & (kPeerArrivals - 1)];
  int32_t status = BARACUDA_OK;
  if (peer.wait == BARACUDA_PEER_WAIT_GATE) {
    void* const signal =
        peer.owes_signal ? peer.on_device(peer.file.hop(peer.rank()).read) : nullptr;
    status = with_record(
        peer.ops->gate(stream, peer.on_device(word), at.full | kPeerAbortMask, signal), "gate");
    if (status == BARACUDA_OK) peer.owes_signal = false;
  } else {
    status = take_word(peer, stream, word, at.full);
  }
  if (status != BARACUDA_OK || !at.receives_by_transport) return status;
  return baracuda_send_recv_exchange()->wait(end, number, stream);
}

// The words for which the caller's stream has waited do not show that this rank's own data has
// arrived at the next rank, so the stream also waits for the last round's event.
int32_t finish(Endpoint* end, void* stream) {
  baracuda_peer& peer = peer_of(end);
  if (!peer.in_run) return BARACUDA_OK;
  peer.in_run = false;
  const int32_t status = baracuda_send_recv_exchange()->wait(end, peer.last_number, stream);
  if (status != BARACUDA_OK) return status;
  return write_word(peer, stream, peer.file.hop(peer.rank()).idle, kSet);
}

int32_t join(Endpoint* end, void* stream) {
  baracuda_peer& peer = peer_of(end);
  if (peer.in_run) {
    // This run does not reach finish(), which sets the word `idle`. The next run would wait for
    // that word for ever, so the ring is aborted.
    peer.in_run = peer.owes_signal = false;
    peer.end_ring();
  }
  return baracuda_send_recv_exchange()->join(end, stream);
}

int32_t signals(Endpoint* end, int32_t number) {
  baracuda_peer& peer = peer_of(end);
  peer.owes_signal = peer.wait == BARACUDA_PEER_WAIT_GATE && round_at(peer, number).takes;
  return peer.owes_signal ? 1 : 0;
}

int32_t margin(Endpoint* end) {
  baracuda_peer& peer = peer_of(end);
  return round_at(peer, peer.last_number).transports ? end->max_ctas : 0;
}

// Ends both kinds of waits of the neighbours: for messages of the transport, and for words.
void abort(Endpoint* end) {
  baracuda_send_recv_exchange()->abort(end);
  peer_of(end).end_ring();
}

int32_t register_buffer(Endpoint* end, void* data, int64_t bytes) {
  return baracuda_peer_register(&peer_of(end), data, bytes);
}

constexpr baracuda_ring_exchange exchange = {sizeof(baracuda_ring_exchange),
                                             "peer",
                                             register_buffer,
                                             grant,
                                             open,
                                             post,
                                             close,
                                             complete,
                                             wait,
                                             join,
                                             finish,
                                             signals,
                                             margin,
                                             abort};

// splitmix64's finaliser.
uint64_t mix(uint64_t digest, uint64_t value) {
  digest += value + 0x9e3779b97f4a7c15u;
  digest = (digest ^ (digest >> 30)) * 0xbf58476d1ce4e5b9u;
  digest = (digest ^ (digest >> 27)) * 0x94d049bb133111ebu;
  return digest ^ (digest >> 31);
}

// Chooses one of bits 0 to 30 of a word's `state`. Bit 31 is not used. (The abort bit is in the
// word's other half, `abort`.)
uint32_t one_bit(uint64_t digest) { return uint32_t{1} << (digest % 31); }

}  // namespace

const baracuda_ring_exchange& peer_exchange() { return exchange; }

}  // namespace baracuda

using namespace baracuda;

int32_t baracuda_peer::find(const void* data, int64_t bytes) const {
  const char* const begin = static_cast<const char*>(data);
  for (size_t i = 0; i < buffers.size(); ++i) {
    const PeerBuffer& buffer = buffers[i];
    if (begin >= buffer.mine && bytes <= buffer.bytes - (begin - buffer.mine)) {
      return static_cast<int32_t>(i);
    }
  }
  return -1;
}

int32_t baracuda_peer::end_ring() {
  const baracuda_error failure = *baracuda_last_error();
  baracuda_peer_abort(this, &failure);
  return restore_failure(failure);
}

int32_t baracuda_peer::begin(const baracuda_ring_round& round) {
  constexpr const char* call = "peer exchange";
  const bool starts = round.number <= last_number || last_number < 0;

  PeerRound at;
  at.number = round.number;
  bool registered = true;
  uint64_t digest = mix(0, static_cast<uint64_t>(round.number));
  for (int32_t i = 0; i < round.receive_count && registered; ++i) {
    const baracuda_ring_message& in = round.receives[i];
    const int32_t index = find(in.data, in.bytes);
    registered = index >= 0;
    if (!registered) break;
    const PeerBuffer& buffer = buffers[static_cast<size_t>(index)];
    const int64_t offset = static_cast<char*>(in.data) - buffer.mine;
    digest = mix(digest, static_cast<uint64_t>(index));
    digest = mix(digest, static_cast<uint64_t>(offset));
    digest = mix(digest, static_cast<uint64_t>(in.bytes));
    if (buffer.next != nullptr && in.bytes > buffer.next_bytes - offset) {
      fail(BARACUDA_INVALID_ARGUMENT, call,
           "rank %d sends %lld bytes to rank %d, whose registered buffer has room for %lld", rank(),
           static_cast<long long>(in.bytes), next(),
           static_cast<long long>(buffer.next_bytes - offset));
      return end_ring();
    }
  }
  if (!registered && wish == BARACUDA_PEER_REQUIRED) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "kv_scratch_a, kv_scratch_b, kv_gradient_scratch: got an unregistered buffer on "
                "rank %d, must be given to comm.register() on every rank, since exchange is "
                "\"peer\"",
                rank());
  }
  for (int32_t i = 0; i < round.send_count; ++i) {
    const bool pushed = registered && out_by_peer && round.sends[i].peer == next();
    (pushed ? at.pushes : at.transports) = true;
  }
  for (int32_t i = 0; i < round.receive_count; ++i) {
    const bool taken = registered && in_by_peer && round.receives[i].peer == previous();
    (taken ? at.takes : at.receives_by_transport) = true;
  }
  at.transports = at.transports || at.receives_by_transport;
  at.starts = starts;
  at.digest = digest;
  at.granted = one_bit(digest >> 32);
  at.full = one_bit(digest & 0xffffffffu);
  round_at(*this, round.number) = at;
  last_number = round.number;
  const int32_t status = starts ? baracuda_peer_check(this) : BARACUDA_OK;
  if (status != BARACUDA_OK || !starts || !(at.takes || at.pushes)) return status;

  const uint32_t run = runs + 1;
  const uint64_t told = uint64_t{run} << 32 | (digest & 0xffffffffu);
  __atomic_store_n(&file.notes(rank()).signature[run % kPeerRunsTold], told, __ATOMIC_SEQ_CST);
  __atomic_store_n(&runs, run, __ATOMIC_RELEASE);
  return compare_runs() == BARACUDA_OK ? BARACUDA_OK : end_ring();
}

int32_t baracuda_peer::compare_runs() {
  const uint32_t told = __atomic_load_n(&runs, __ATOMIC_ACQUIRE);
  for (const bool ahead : {false, true}) {
    if (!(ahead ? out_by_peer : in_by_peer)) continue;
    const int32_t other = ahead ? next() : previous();
    uint32_t run = __atomic_load_n(&compared[ahead], __ATOMIC_RELAXED);
    if (told - run > kPeerRunsTold / 2) run = told - kPeerRunsTold / 2;
    while (run < told) {
      const size_t slot = (run + 1) % kPeerRunsTold;
      const uint64_t theirs =
          __atomic_load_n(&file.notes(other).signature[slot], __ATOMIC_SEQ_CST);
      const uint32_t their_run = static_cast<uint32_t>(theirs >> 32);
      if (their_run < run + 1) break;  // the other rank has not written that run's signature yet
      ++run;
      const uint64_t ours = __atomic_load_n(&file.notes(rank()).signature[slot], __ATOMIC_SEQ_CST);
      if (their_run != run || theirs == ours) continue;
      return fail(BARACUDA_INVALID_ARGUMENT, "peer exchange",
                  "run %u: ranks %d and %d differ in their problems or in the buffers that they "
                  "receive into",
                  run, rank(), other);
    }
    __atomic_store_n(&compared[ahead], run, __ATOMIC_RELAXED);
  }
  return BARACUDA_OK;
}
