// The words of the ranks of one host: one shared-memory file that all of them map.
//
// A word is 64 bits. Streams write and reset its lower half; a bit of its upper half, which only a
// CPU sets, ends every wait for it, now and later.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "baracuda/peer.h"
#include "baracuda/status.h"

namespace baracuda {

constexpr uint64_t kPeerAbortMask = uint64_t{1} << 63;
constexpr uint32_t kPeerAbortHalf = uint32_t{1} << 31;
constexpr int kPeerArrivals = 4;  // rounds whose arrival may not have been waited for yet

struct alignas(64) PeerWord {
  uint32_t state;
  uint32_t abort;
};

// Of the hop from the rank before to this one.
struct PeerHopWords {
  PeerWord granted;                 // by this rank; the sender resets it
  PeerWord full;                    // by the sender; the ring stream of this rank resets it
  PeerWord arrived[kPeerArrivals];  // by the sender, by round; the caller's stream resets it
  PeerWord read;  // by this rank's caller's stream; its ring stream resets it
  // No run is under way: by the caller's stream, and reset by the ring stream. Runs from other streams,
  // and replays of graphs, thus follow one another.
  PeerWord idle;
};

// What a rank's host tells the others': the problem of its latest runs, by their number.
constexpr int kPeerRunsTold = 64;
struct alignas(64) PeerRunNotes {
  uint64_t signature[kPeerRunsTold];  // 0: not told yet
};

struct PeerFileHeader {
  char nonce[16];
  int32_t aborted;  // 0, then 1 while the reason is written, then 2
  baracuda_error reason;  // as the other ranks meet it; its rank is the one that aborted
};

// Maps the file of a nonce: the first rank of the host makes it, the others open it. The name is gone
// once all have it mapped; the memory lives as long as a mapping.
class PeerHostFile {
 public:
  PeerHostFile() = default;
  ~PeerHostFile();
  PeerHostFile(const PeerHostFile&) = delete;
  PeerHostFile& operator=(const PeerHostFile&) = delete;

  bool create(const char nonce[16], int32_t world_size);
  bool open(const char nonce[16], int32_t world_size);
  void unlink();
  // Leaves the mapping as it is: a device may still use it.
  void leak() { data_ = nullptr; }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  PeerFileHeader& header() const { return *static_cast<PeerFileHeader*>(data_); }
  PeerHopWords& hop(int32_t receiver) const;
  PeerRunNotes& notes(int32_t rank) const;

  // Held until this process ends, or lets go; other processes can tell.
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

// 16 bytes that no other call and no other process gets.
bool random_bytes(char bytes[16]);

}  // namespace baracuda
