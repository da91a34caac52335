// One rank's part of the exchange by peer (copies into the next rank's memory): its hops (the
// connections to its two neighbours), its words (signals in shared memory, see host_file.h), and
// the buffers that it shares.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "baracuda/peer.h"
#include "ring/exchange/peer/host_file.h"

namespace baracuda {

// A registered buffer of this rank, and the next rank's buffer of the same number. (Every rank
// registers the same buffers in the same order.)
struct PeerBuffer {
  char* mine;
  int64_t bytes;
  char* next;  // its address in this process; NULL if this rank does not push (copy into it)
  int64_t next_bytes;
  void* opened;  // for close_memory; NULL if next is memory of this process
};

// Whether a hop uses the exchange by peer, and if not, why. Every rank has the same verdicts.
struct PeerVerdict {
  int32_t reason = BARACUDA_PEER_WORKS;
  std::string detail;
};

// The work of a round on this rank.
struct PeerRound {
  int32_t number = -1;
  bool starts = false;      // first round of a run
  bool takes = false;       // the previous rank pushes to this one
  bool pushes = false;      // this rank pushes to the next one
  bool transports = false;  // some messages go by the transport
  bool receives_by_transport = false;
  // The bits that are set in the words `granted` and `full` (host_file.h). Both ends of a hop
  // compute these bits from the round's number, buffers, offsets and bytes. Ranks whose problems
  // differ nearly always compute different bits, and then wait instead of reading wrong data.
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

  // A word's device address, for operations on streams.
  void* on_device(const baracuda::PeerWord& word) const {
    return device_words +
           (reinterpret_cast<const char*>(&word) - static_cast<const char*>(file.data()));
  }
  // The index of the registered buffer that contains these bytes; -1: none.
  int32_t find(const void* data, int64_t bytes) const;

  // Checks a round's buffers and stores its PeerRound in `rounds`. In a run's first round it also
  // compares the neighbours' problems.
  int32_t begin(const baracuda_ring_round& round);
  // Compares the neighbours' problems with this rank's; BARACUDA_INVALID_ARGUMENT if they differ.
  int32_t compare_runs();
  // Gathers a few bytes from every rank, for set-up.
  int32_t all_gather(const void* mine, int64_t bytes, void* all) {
    return gather == nullptr ? baracuda_ring_all_gather(&end, mine, bytes, all)
                             : gather(gather_context, mine, bytes, all);
  }
  // Aborts the ring after a failure that perhaps only this rank sees, so that no other rank waits
  // for this one. Returns the failure's status.
  int32_t end_ring();

  baracuda_ring_endpoint& end;
  const baracuda_peer_ops* ops = nullptr;
  int32_t (*gather)(void* context, const void* mine, int64_t bytes, void* all) = nullptr;
  void* gather_context = nullptr;
  int32_t wish = BARACUDA_PEER_NEVER;
  int32_t wait = BARACUDA_PEER_WAIT_EVENT;
  int32_t next_wait = BARACUDA_PEER_WAIT_EVENT;  // `wait` of the next rank
  bool in_by_peer = false;
  bool out_by_peer = false;
  bool next_in_process = false;
  bool previous_in_process = false;
  std::vector<baracuda::PeerVerdict> verdicts;  // entry r: the hop from rank r to rank r + 1
  std::string detail;                           // the message of this rank's last failure

  baracuda::PeerHostFile file;
  char* device_words = nullptr;
  std::vector<baracuda::PeerBuffer> buffers;

  // The latest rounds; round n is entry n mod kPeerArrivals.
  baracuda::PeerRound rounds[baracuda::kPeerArrivals];
  int32_t last_number = -1;
  bool in_run = false;  // a run that waits for words has begun and not finished
  // The next wait on the caller's stream, a kernel that spins on a word (runtime/gate.h), must also
  // set the word `read`. The next round's grant waits for `read`.
  bool owes_signal = false;
  uint32_t runs = 0;  // runs whose signature this rank has written to the shared file
  // How many runs' signatures were compared. [0]: with the previous rank's; [1]: with the next
  // rank's.
  uint32_t compared[2] = {};
  char process[16] = {};  // this process's id; no other process has it
};

namespace baracuda {

// The exchange of an endpoint whose context is a baracuda_peer.
const baracuda_ring_exchange& peer_exchange();

// A buffer as a rank describes it to the previous rank.
struct PeerOffer {
  baracuda_peer_memory memory;
  uint64_t address;
  int64_t bytes;
  int32_t status;  // of the export
};

// Describes a buffer of this rank. The memory is exported if `to_previous` is true and the previous
// rank is in another process.
PeerOffer peer_offer(baracuda_peer& peer, void* data, int64_t bytes, bool to_previous);
// Makes the next rank's buffer accessible, as buffer.next. Returns the status, with an error record
// if it is a failure.
int32_t peer_take(baracuda_peer& peer, const PeerOffer& offer, PeerBuffer& buffer);
// Closes what peer_take() opened.
void peer_return(baracuda_peer& peer, PeerBuffer& buffer);

}  // namespace baracuda
