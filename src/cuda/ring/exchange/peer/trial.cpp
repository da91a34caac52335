#include "ring/exchange/peer/trial.h"

#include <chrono>
#include <thread>

#include "baracuda/status.h"
#include "common/error.h"
#include "common/interrupt.h"

namespace baracuda {

bool PeerTrial::note(int32_t status) {
  if (status != BARACUDA_OK) peer_.detail = baracuda_last_error()->message;
  return status == BARACUDA_OK;
}

bool PeerTrial::run(double seconds) {
  baracuda_ring_endpoint& end = peer_.end;
  char* const into = static_cast<char*>(memory_);
  char* const from = into + bytes_;
  const std::vector<char> pattern = pattern_of(nonce_);
  const std::vector<char> expected = pattern_of(previous_nonce_);
  if (!note(end.ops->copy(from, pattern.data(), bytes_, end.ring_stream)) ||
      !note(end.ops->clear(into, bytes_, end.ring_stream)) ||
      !note(end.ops->record(end.compute_done, end.ring_stream))) {
    return false;
  }
  if (peer_.wait == BARACUDA_PEER_WAIT_GATE && !note(peer_.ops->gate_load())) return false;
  const bool enqueued = note(enqueue_round(from, into));
  if (!wait_for_stream(seconds)) {
    release();
    if (enqueued) peer_.detail = "the exchange was not done in time";
    wait_for_stream(kReleaseSeconds);
    return false;
  }
  if (!enqueued) return false;
  if (!peer_.in_by_peer) return true;
  std::vector<char> found(static_cast<size_t>(bytes_));
  if (!note(end.ops->copy(found.data(), into, bytes_, end.ring_stream)) ||
      !note(end.ops->stream_synchronize(end.ring_stream))) {
    return false;
  }
  if (found == expected) return true;
  peer_.detail = "what arrived is not what was sent";
  return false;
}

std::vector<char> PeerTrial::pattern_of(const char* nonce) const {
  std::vector<char> pattern(static_cast<size_t>(bytes_));
  for (size_t i = 0; i < pattern.size(); ++i) {
    pattern[i] = static_cast<char>(nonce[i % 16] + static_cast<char>(i / 16));
  }
  return pattern;
}

int32_t PeerTrial::enqueue_round(void* from, void* into) {
  baracuda_ring_endpoint& end = peer_.end;
  const baracuda_ring_exchange& exchange = peer_exchange();
  baracuda_ring_round round{};
  round.stream = end.ring_stream;
  round.ready = end.compute_done;
  // The round has a send and a receive even if only one of this rank's hops is by peer. The reason
  // is that the bits of both hops are computed from the receive (PeerRound), and so is the address
  // at the next rank to which push() copies.
  round.send_count = round.receive_count = 1;
  round.sends[0] = {from, bytes_, peer_.out_by_peer ? peer_.next() : -1};
  round.receives[0] = {into, bytes_, peer_.in_by_peer ? peer_.previous() : -1};
  end.exchange_context = &peer_;
  int32_t status = exchange.grant(&end, &round);
  // The trial sends nothing over the transport.
  peer_.rounds[0].transports = peer_.rounds[0].receives_by_transport = false;
  if (status == BARACUDA_OK) status = exchange.post(&end, &round);
  if (status == BARACUDA_OK) status = exchange.complete(&end, &round);
  if (status == BARACUDA_OK && peer_.in_by_peer) status = exchange.wait(&end, 0, end.ring_stream);
  if (status == BARACUDA_OK) status = exchange.finish(&end, end.ring_stream);
  end.exchange_context = nullptr;
  peer_.last_number = -1;
  return status;
}

bool PeerTrial::wait_for_stream(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto limit = Clock::now() + std::chrono::duration<double>(seconds);
  const StopScope scope(nullptr);
  for (;;) {
    int32_t done = 0;
    if (!note(peer_.ops->query(peer_.end.ring_stream, &done))) return false;
    if (done != 0) return true;
    if (Clock::now() >= limit) return false;
    if (interrupted_ == BARACUDA_OK) interrupted_ = poll_stop("baracuda_peer_connect");
    if (interrupted_ != BARACUDA_OK && !released_) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void PeerTrial::release() {
  released_ = true;
  const auto set = [](PeerWord& word) {
    __atomic_store_n(&word.abort, kPeerAbortHalf, __ATOMIC_SEQ_CST);
  };
  set(peer_.file.hop(peer_.next()).granted);
  PeerHopWords& mine = peer_.file.hop(peer_.rank());
  set(mine.full);
  set(mine.idle);
  for (PeerWord& word : mine.arrived) set(word);
}

}  // namespace baracuda
