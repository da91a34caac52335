// One rank's side of the peer exchange: its hops, its words, and its registered buffers.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "baracuda/peer.h"
#include "ring/exchange/peer/host_file.h"

namespace baracuda {

// A registered buffer of this rank, and the mapping of the next rank's buffer with the same number.
struct PeerBuffer {
  char* mine;
  int64_t bytes;
  char* next;  // NULL if this rank does not push
  int64_t next_bytes;
  void* opened;  // the mapping to close
};

// Why a hop is not a peer hop; the same on every rank.
struct PeerVerdict {
  int32_t reason = BARACUDA_PEER_WORKS;
  std::string detail;
};

// The work of a round on this rank.
struct PeerRound {
  int32_t number = -1;
  bool starts = false;      // this is the first round of a run
  bool takes = false;       // the previous rank pushes to this one
  bool pushes = false;      // this rank pushes to the next one
  bool transports = false;  // some messages go by the transport
  bool receives_by_transport = false;
  // The bit of the words that both ends derive from buffers, offsets and bytes. Ranks whose
  // problems differ then wait for each other instead of misreading the data.
  uint32_t granted = 0;
  uint32_t full = 0;
  uint64_t digest = 0;
};

}  // namespace baracuda

struct baracuda_peer {
  explicit baracuda_peer(baracuda_ring_endpoint& endpoint) : end(endpoint) {}

  int32_t rank() const { return end.transport.rank; }
  int32_t world_size() const { return end.transport.world_size; }
  int32_t next() const { return (rank() + 1) % world_size(); }
  int32_t previous() const { return (rank() + world_size() - 1) % world_size(); }
  bool has_hops() const { return in_by_peer || out_by_peer; }

  // A word's address for streams.
  void* on_device(const baracuda::PeerWord& word) const {
    return device_words +
           (reinterpret_cast<const char*>(&word) - static_cast<const char*>(file.data()));
  }
  // The registered buffer that holds these bytes; -1: none.
  int32_t find(const void* data, int64_t bytes) const;

  // Reads and describes a round.
  int32_t begin(const baracuda_ring_round& round);
  // Compares the neighbours' problems with this rank's; BARACUDA_INVALID_ARGUMENT if they differ.
  int32_t compare_runs();
  // Gathers a few bytes of every rank, for set-up.
  int32_t all_gather(const void* mine, int64_t bytes, void* all) {
    return gather == nullptr ? baracuda_ring_all_gather(&end, mine, bytes, all)
                             : gather(gather_context, mine, bytes, all);
  }
  // Ends the ring after a failure that only this rank may see, so that no rank waits for it.
  int32_t end_ring();

  baracuda_ring_endpoint& end;
  const baracuda_peer_ops* ops = nullptr;
  int32_t (*gather)(void* context, const void* mine, int64_t bytes, void* all) = nullptr;
  void* gather_context = nullptr;
  int32_t wish = BARACUDA_PEER_NEVER;
  int32_t wait = BARACUDA_PEER_WAIT_EVENT;
  int32_t next_wait = BARACUDA_PEER_WAIT_EVENT;  // how the next rank's caller waits
  bool in_by_peer = false;
  bool out_by_peer = false;
  bool next_in_process = false;
  bool previous_in_process = false;
  std::vector<baracuda::PeerVerdict> verdicts;  // by the hop's first rank
  std::string detail;                           // of this rank's last failure

  baracuda::PeerHostFile file;
  char* device_words = nullptr;
  std::vector<baracuda::PeerBuffer> buffers;

  baracuda::PeerRound rounds[baracuda::kPeerArrivals];  // the latest, by number
  int32_t last_number = -1;
  bool in_run = false;   // the caller's stream waits for words of the current run
  bool owes_signal = false;  // the next wait signals the grant after it: the launch has ended
  uint32_t runs = 0;     // number of runs that the neighbours were told
  uint32_t compared[2] = {};  // how many of them were compared with the previous and the next rank
  char process[16] = {};  // identifies the process on its host
};

namespace baracuda {

// The exchange of an endpoint whose context is a baracuda_peer.
const baracuda_ring_exchange& peer_exchange();

// A rank's message about a buffer to the previous rank.
struct PeerOffer {
  baracuda_peer_memory memory;
  uint64_t address;
  int64_t bytes;
  int32_t status;  // of the export
};

// Makes the message. The buffer is exported only if the previous rank needs it.
PeerOffer peer_offer(baracuda_peer& peer, void* data, int64_t bytes, bool to_previous);
// Maps the next rank's buffer. BARACUDA_OK, or a recorded failure.
int32_t peer_take(baracuda_peer& peer, const PeerOffer& offer, PeerBuffer& buffer);
void peer_return(baracuda_peer& peer, PeerBuffer& buffer);

}  // namespace baracuda
