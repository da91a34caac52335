// Operations by which a stream waits for words (signals in shared memory, see host_file.h) and
// writes them.
#pragma once

#include "baracuda/status.h"
#include "common/error.h"
#include "ring/exchange/peer/peer.h"

namespace baracuda {

// Calls f, a function of an operations table that a test may have replaced. If f fails and leaves
// no error record, this makes one.
template <typename F>
int32_t recorded(const char* call, F f) {
  const int32_t status = f();
  if (status == BARACUDA_OK) return status;
  if (has_record() && baracuda_last_error()->status == status) return status;
  return fail_with_code(status, status, call, "%s returned %d", call, status);
}

inline int32_t write_word(baracuda_peer& peer, void* stream, const PeerWord& word, uint32_t value) {
  return recorded("write_word",
                  [&] { return peer.ops->write_word(stream, peer.on_device(word), value); });
}
inline int32_t await_word(baracuda_peer& peer, void* stream, const PeerWord& word, uint32_t bit) {
  return recorded("wait_word", [&] {
    return peer.ops->wait_word(stream, peer.on_device(word), bit | kPeerAbortMask);
  });
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
      return recorded("write_words",
                      [&] { return peer.ops->write_words(stream, words_, values_, count_); });
    }
    int32_t status = BARACUDA_OK;
    for (int32_t i = 0; i < count_ && status == BARACUDA_OK; ++i) {
      status = recorded("write_word",
                        [&] { return peer.ops->write_word(stream, words_[i], values_[i]); });
    }
    return status;
  }

 private:
  void* words_[3];
  uint32_t values_[3];
  int32_t count_ = 0;
};

}  // namespace baracuda
