// The trial of the exchange by peer: one round on this rank's hops (the connections to its two
// neighbours), before they are used.
#pragma once

#include <stdint.h>

#include <vector>

#include "baracuda/status.h"
#include "ring/exchange/peer/peer.h"

namespace baracuda {

class PeerTrial {
 public:
  // Seconds that a failed trial waits, after release(), for the ring stream's work to end. Normally
  // this takes microseconds.
  static constexpr double kReleaseSeconds = 5.0;

  // memory: two halves of `bytes` each, the first for receiving and the second for sending. nonce,
  // previous_nonce: 16 random bytes of this rank and of the previous one. A rank's data is made
  // from its nonce.
  PeerTrial(baracuda_peer& peer, void* memory, int64_t bytes, const char* nonce,
            const char* previous_nonce)
      : peer_(peer),
        memory_(memory),
        bytes_(bytes),
        nonce_(nonce),
        previous_nonce_(previous_nonce) {}

  // Runs the round and checks the received data. If it returns false, peer.detail says why, or
  // interrupted() does.
  bool run(double seconds);
  // BARACUDA_INTERRUPTED if a signal came while the trial waited.
  int32_t interrupted() const { return interrupted_; }

 private:
  // True for BARACUDA_OK; otherwise keeps the message.
  bool note(int32_t status);
  std::vector<char> pattern_of(const char* nonce) const;
  int32_t enqueue_round(void* from, void* into);
  // False after the time limit or a signal.
  bool wait_for_stream(double seconds);
  // Ends the waits of this rank only; failed hops are not used again.
  void release();

  baracuda_peer& peer_;
  void* const memory_;
  const int64_t bytes_;
  const char* const nonce_;
  const char* const previous_nonce_;
  bool released_ = false;
  int32_t interrupted_ = BARACUDA_OK;
};

}  // namespace baracuda
