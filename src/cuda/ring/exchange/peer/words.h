// Operations by which a stream waits for words (signals in shared memory, see host_file.h) and
// writes them.
#pragma once

#include "baracuda/status.h"
#include "common/error.h"
#include "ring/exchange/peer/peer.h"

namespace baracuda {

inline int32_t write_word(baracuda_peer& peer, void* stream, const PeerWord& word, uint32_t value) {
  return with_record(peer.ops->write_word(stream, peer.on_device(word), value), "write_word");
}
inline int32_t await_word(baracuda_peer& peer, void* stream, const PeerWord& word, uint32_t bit) {
  return with_record(peer.ops->wait_word(stream, peer.on_device(word), bit | kPeerAbortMask),
                     "wait_word");
}
// Waits for a bit of the word and resets the word.
inline int32_t take_word(baracuda_peer& peer, void* stream, const PeerWord& word, uint32_t bit) {
  const int32_t status = await_word(peer, stream, word, bit);
  return status == BARACUDA_OK ? write_word(peer, stream, word, 0) : status;
}

// Words that a stream writes directly after each other, in order.
class Writes {
 public:
  void add(const baracuda_peer& peer, const PeerWord& word, uint32_t value) {
    words_[count_] = peer.on_device(word);
    values_[count_++] = value;
  }

  int32_t enqueue(const baracuda_peer& peer, void* stream) const {
    if (peer.ops->write_words != nullptr) {
      return with_record(peer.ops->write_words(stream, words_, values_, count_), "write_words");
    }
    int32_t status = BARACUDA_OK;
    for (int32_t i = 0; i < count_ && status == BARACUDA_OK; ++i) {
      status = with_record(peer.ops->write_word(stream, words_[i], values_[i]), "write_word");
    }
    return status;
  }

 private:
  void* words_[3];
  uint32_t values_[3];
  int32_t count_ = 0;
};

}  // namespace baracuda
