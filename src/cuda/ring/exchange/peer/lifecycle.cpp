// Queries, abort and close of the exchange by peer (copies into the next rank's memory), once it is
// connected.
#include <chrono>
#include <thread>

#include "baracuda/status.h"
#include "common/error.h"
#include "ring/device_scope.h"
#include "ring/exchange/peer/peer.h"
#include "ring/exchange/reason.h"

namespace baracuda {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds that close waits for the previous rank to close as well.
constexpr double kNeighbourSeconds = 5.0;
// A grace period in seconds. Words that the neighbours set just before they closed may reach this
// rank's device a little later.
constexpr double kRestSeconds = 0.5;

constexpr const char* kReasons[BARACUDA_PEER_REASONS] = {
    "works",
    "one of its ranks asked for exchange=\"nccl\"",
    "one of its ranks is not on a CUDA device",
    "its ranks are on different hosts",
    "its ranks share no file in /dev/shm, or their devices cannot map it",
    "the receiver's memory cannot be exported",
    "the sender cannot open the receiver's memory",
    "the trial failed",
    "its ranks are in one process",
};

template <typename Done>
bool poll(double seconds, Done done) {
  const bool forever = !(seconds > 0 && seconds < 1e8);
  const auto limit = Clock::now() + std::chrono::duration<double>(forever ? 0 : seconds);
  while (!done()) {
    if (!forever && Clock::now() >= limit) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

// True if both neighbours have closed or died, and both hops of this rank are by peer.
bool is_left_alone(const baracuda_peer& peer) {
  return peer.in_by_peer && peer.out_by_peer && !peer.file.is_held(peer.previous()) &&
         !peer.file.is_held(peer.next());
}

void end_waits(baracuda_peer& peer) {
  const auto set = [](PeerWord& word) {
    __atomic_store_n(&word.abort, kPeerAbortHalf, __ATOMIC_SEQ_CST);
  };
  for (int32_t rank = 0; rank < peer.world_size(); ++rank) {
    PeerHopWords& words = peer.file.hop(rank);
    set(words.granted);
    set(words.full);
    set(words.read);
    set(words.idle);
    for (PeerWord& word : words.arrived) set(word);
  }
}

}  // namespace
}  // namespace baracuda

using namespace baracuda;

extern "C" {

const char* baracuda_peer_reason_text(int32_t reason) {
  return reason >= 0 && reason < BARACUDA_PEER_REASONS ? kReasons[reason] : "unknown";
}

int32_t baracuda_peer_reason_of(const baracuda_peer* peer, int32_t rank) {
  return peer->verdicts[static_cast<size_t>(rank)].reason;
}

const char* baracuda_peer_detail_of(const baracuda_peer* peer, int32_t rank) {
  return peer->verdicts[static_cast<size_t>(rank)].detail.c_str();
}

void baracuda_peer_abort(baracuda_peer* peer, const baracuda_error* reason) {
  if (!peer->has_hops() || peer->file.data() == nullptr) return;
  PeerFileHeader& header = peer->file.header();
  int32_t expected = 0;
  if (__atomic_compare_exchange_n(&header.aborted, &expected, 1, false, __ATOMIC_SEQ_CST,
                                  __ATOMIC_SEQ_CST)) {
    header.reason = *reason;
    header.reason.status = status_of_others(reason->status);
    header.reason.rank = peer->rank();
    __atomic_store_n(&header.aborted, 2, __ATOMIC_SEQ_CST);
  }
  // The reason is stored first, so a rank whose waits end here sees that the ring has failed.
  end_waits(*peer);
}

int32_t baracuda_peer_check(baracuda_peer* peer) {
  if (!peer->has_hops() || peer->file.data() == nullptr) return BARACUDA_OK;
  const PeerFileHeader& header = peer->file.header();
  const int32_t aborted = __atomic_load_n(&header.aborted, __ATOMIC_SEQ_CST);
  if (aborted == 0) return peer->compare_runs();
  if (aborted == 1) {
    fail(BARACUDA_ABORTED, "peer exchange", "a rank ended the ring on this host");
    locate_failure(peer->rank(), -1);
    return BARACUDA_ABORTED;
  }
  const baracuda_error& reason = header.reason;
  fail_with_code(reason.status, reason.code, "peer exchange",
                 "rank %d ended the ring on this host: %.63s: %.200s", reason.rank, reason.call,
                 reason.message);
  locate_failure(peer->rank(), reason.step);
  return reason.status;
}

int32_t baracuda_peer_close(baracuda_peer* peer, double patience, int32_t* quarantined) {
  if (quarantined != nullptr) *quarantined = 0;
  if (peer == nullptr) return BARACUDA_OK;
  baracuda_ring_endpoint& end = peer->end;
  if (end.exchange_context == peer) {
    end.exchange = baracuda_send_recv_exchange();
    end.exchange_context = nullptr;
  }
  if (peer->file.data() == nullptr) {
    delete peer;
    return BARACUDA_OK;
  }
  DeviceScope device;
  int32_t status = device.enter(*end.ops, end.device);
  const auto is_done = [&] {
    int32_t done = 1;
    return peer->ops->query(end.ring_stream, &done) != BARACUDA_OK || done != 0;
  };
  // A neighbour that has closed or died sends nothing more. Once both neighbours have closed or
  // died, the rest of a run would wait for ever.
  bool left_alone = false;
  const bool ended = poll(patience, [&] {
    if (is_done()) return true;
    if (left_alone || !is_left_alone(*peer)) return false;
    left_alone = true;
    if (poll(kRestSeconds, is_done)) return true;
    const baracuda_error reason = {BARACUDA_ABORTED, 0, peer->rank(), -1, "baracuda_peer_close",
                                   "its neighbours have closed, but a run is not done"};
    baracuda_peer_abort(peer, &reason);
    return false;
  });
  if (!ended) {
    // A device may still read the words and write to the neighbour, so nothing is freed.
    if (quarantined != nullptr) *quarantined = 1;
    return fail(BARACUDA_TIMEOUT, "baracuda_peer_close",
                "rank %d: the ring stream was not done within %g s", peer->rank(), patience);
  }
  for (PeerBuffer& buffer : peer->buffers) peer_return(*peer, buffer);
  peer->file.let_go(peer->rank());
  if (peer->in_by_peer && !peer->previous_in_process && !peer->buffers.empty()) {
    const double wait = patience > 0 && patience < kNeighbourSeconds ? patience : kNeighbourSeconds;
    const bool gone = poll(wait, [&] { return !peer->file.is_held(peer->previous()); });
    if (!gone && quarantined != nullptr) *quarantined = 1;
  }
  if (peer->device_words != nullptr) status = peer->ops->unmap_words(peer->file.data());
  if (status != BARACUDA_OK) peer->file.leak();
  delete peer;
  return status;
}

}  // extern "C"
