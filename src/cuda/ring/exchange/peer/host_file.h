// Shared memory by which the ranks of one machine signal in the exchange by peer (copies into the
// next rank's memory): a file that all of them map. Its signals are called words.
//
// A word has 64 bits. Streams set, await and reset its lower half. Only a CPU sets bits of its
// upper half; such a bit ends every wait for the word, now and later.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "baracuda/peer.h"
#include "baracuda/status.h"

namespace baracuda {

constexpr uint64_t kPeerAbortMask = uint64_t{1} << 63;
constexpr uint32_t kPeerAbortHalf = uint32_t{1} << 31;
// The most rounds that may be enqueued before the caller's stream waits for the first of them.
constexpr int kPeerArrivals = 4;

struct alignas(64) PeerWord {
  uint32_t state;
  uint32_t abort;
};

// The words of a hop, which is the connection from one rank (the sender) to the next (this rank).
struct PeerHopWords {
  // If set, the sender may write to the receive buffer. Set by this rank; reset by the sender.
  PeerWord granted;
  // If set, the data has been written. Set by the sender; reset by this rank's ring stream.
  PeerWord full;
  // Like `full`, but for the caller's stream. The rounds use these words in turn. Set by the
  // sender; reset by the caller's stream.
  PeerWord arrived[kPeerArrivals];
  // If set, the caller's stream has passed its wait for the previous round. So the launch before
  // that wait has ended, and its buffers are free. Set by the caller's stream; reset by this rank's
  // ring stream.
  PeerWord read;
  // Set while no run is active, and until the first round of the next run has ended. The first
  // round of a run waits for it. This orders runs on different streams, and replays of graphs. Set
  // by the caller's stream; reset by this rank's ring stream.
  PeerWord idle;
};

// Signatures of the problems of a rank's latest runs, which the neighbours compare with their own.
constexpr int kPeerRunsTold = 64;
struct alignas(64) PeerRunNotes {
  uint64_t signature[kPeerRunsTold];  // 0: none yet
};

struct PeerFileHeader {
  char nonce[16];
  int32_t aborted;  // 0, then 1 while the reason is written, then 2
  baracuda_error reason;  // the error for the other ranks; its rank is the one that aborted
};

// Maps the shared file of a ring. The file's name contains `nonce`, random bytes that the creating
// rank has told the others. One rank creates the file, and the others open it. The name is removed
// when all have mapped the file; the memory lives as long as any mapping.
class PeerHostFile {
 public:
  PeerHostFile() = default;
  ~PeerHostFile();
  PeerHostFile(const PeerHostFile&) = delete;
  PeerHostFile& operator=(const PeerHostFile&) = delete;

  bool create(const char nonce[16], int32_t world_size);
  bool open(const char nonce[16], int32_t world_size);
  void unlink();
  // From now on the destructor does not unmap the file, since a device may still use it.
  void leak() { data_ = nullptr; }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  PeerFileHeader& header() const { return *static_cast<PeerFileHeader*>(data_); }
  PeerHopWords& hop(int32_t receiver) const;
  PeerRunNotes& notes(int32_t rank) const;

  // Each rank holds a lock of its own until it closes or its process ends. By this lock the others
  // see that the rank is alive.
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
