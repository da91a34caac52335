// The words of the ranks of one host: one shared-memory file that all of them map.
//
// A word has 64 bits. Streams write and reset its lower half. Only a CPU sets bits of its upper
// half; such a bit ends every wait for the word, now and later.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "baracuda/peer.h"
#include "baracuda/status.h"

namespace baracuda {

constexpr uint64_t kPeerAbortMask = uint64_t{1} << 63;
constexpr uint32_t kPeerAbortHalf = uint32_t{1} << 31;
constexpr int kPeerArrivals = 4;  // rounds in flight: their arrival may still be waited for

struct alignas(64) PeerWord {
  uint32_t state;
  uint32_t abort;
};

// The words of the hop from the previous rank to this one.
struct PeerHopWords {
  PeerWord granted;                 // set by this rank; reset by the sender
  PeerWord full;                    // set by the sender; reset by this rank's ring stream
  PeerWord arrived[kPeerArrivals];  // by round: set by the sender; reset by the caller's stream
  PeerWord read;                    // set by the caller's stream; reset by this rank's ring stream
  // No run is active: set by the caller's stream, and reset by the ring stream. This orders runs
  // from different streams, and replays of graphs.
  PeerWord idle;
};

// Signatures of the problems of a rank's latest runs, for the other ranks to compare.
constexpr int kPeerRunsTold = 64;
struct alignas(64) PeerRunNotes {
  uint64_t signature[kPeerRunsTold];  // 0: not told yet
};

struct PeerFileHeader {
  char nonce[16];
  int32_t aborted;  // 0, then 1 while the reason is written, then 2
  baracuda_error reason;  // the error for the other ranks; its rank is the one that aborted
};

// Maps the shared file of a nonce. The first rank of the host creates it, and the others open it.
// Its name is removed once all have mapped it; the memory lives as long as any mapping.
class PeerHostFile {
 public:
  PeerHostFile() = default;
  ~PeerHostFile();
  PeerHostFile(const PeerHostFile&) = delete;
  PeerHostFile& operator=(const PeerHostFile&) = delete;

  bool create(const char nonce[16], int32_t world_size);
  bool open(const char nonce[16], int32_t world_size);
  void unlink();
  // Keeps the mapping for ever, since a device may still use it.
  void leak() { data_ = nullptr; }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  PeerFileHeader& header() const { return *static_cast<PeerFileHeader*>(data_); }
  PeerHopWords& hop(int32_t receiver) const;
  PeerRunNotes& notes(int32_t rank) const;

  // A lock that this process holds until it ends or lets go. Other processes can test it.
  bool hold(int32_t rank);
  void let_go(int32_t rank);
  bool is_held(int32_t rank) const;

 private:
  bool map(const char nonce[16], int32_t world_size, int flags);

  int file_ = -1;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  int32_t world_size_ = 0;
  char name_[64] = "";
};

// 16 random bytes, unique over calls and processes.
bool random_bytes(char bytes[16]);

}  // namespace baracuda
