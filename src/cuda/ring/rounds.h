// The rounds of a run: which messages each one has, and what waits for it. A round is what a rank
// sends and receives together. ring.h defines payloads, BESIDE and BEHIND.
//
// A program may split each step into two launches, the step's parts, so that the messages of a part
// can be sent as soon as its launch has ended. (Attention has one part.) Launches are numbered t =
// step * parts + part. Launch t runs at the same time as round t. Every payload belongs to one part
// p.
//
// A BESIDE payload of part p is sent beside each launch of part p, except in the last step.
//
// A BEHIND payload is a sum over the ranks, such as the gradients of a chunk. Launch t of part p
// computes this rank's share of the sum, and round t + 1 sends the sum on. The share of step 0 is
// not sent, because it belongs to this rank's own chunk. The next rank has the same chunk one step
// later: its launch t + parts computes its share, and the program's `add` adds the share to the
// received sum. (With launch_adds the launch itself adds it.) After the last step, the sum comes
// home: it is sent to the rank that started with the chunk, which adds it to its share of step 0.
// The sums of the last part come home in one more round, after the last launch.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"

namespace baracuda {

inline int64_t chunk_bytes(const baracuda_ring_payload& payload) {
  int64_t bytes = 0;
  for (int32_t i = 0; i < payload.pieces; ++i) bytes += payload.piece_bytes[i];
  return bytes;
}

// Points to the pieces of a chunk that is contiguous in one buffer.
inline void split_chunk(const baracuda_ring_payload& payload, void* buffer, void** pieces) {
  char* next = static_cast<char*>(buffer);
  for (int32_t i = 0; i < payload.pieces; ++i) {
    pieces[i] = next;
    if (next != nullptr) next += payload.piece_bytes[i];
  }
}

class Rounds {
 public:
  explicit Rounds(const baracuda_ring_call& call)
      : call_(call),
        steps_(call.endpoint->transport.world_size),
        parts_(call.program->parts),
        shift_(parts_ - 1) {
    static_assert(BARACUDA_RING_MAX_PARTS == 2, "step_of() and part_of() use a shift and a mask");
  }

  int32_t steps() const { return steps_; }
  int32_t parts() const { return parts_; }
  int32_t launches() const { return steps_ * parts_; }

  bool has_messages(int32_t number) const {
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      if (sent_step(call_.payloads[i], number) >= 0) return true;
    }
    return false;
  }

  // Round n (n is `number`) must not start before launch n - 1 has ended. Usually it waits for an
  // event that is recorded after the launch (compute_done). This function returns true if the round
  // can instead wait for a word (a flag in shared memory) that the caller's stream sets when its
  // wait for round n - 1 is over (Run::ask_for_signal()). There are two conditions. The stream must
  // wait for round n - 1 between launch n - 1 and launch n, because the wait is then over only
  // after launch n - 1 has ended. And no sums may travel, because round n would then also depend on
  // an addition that follows the wait.
  bool needs_launch_alone(int32_t number) const {
    if (number < 1 || number >= launches() || awaited_by_launch(number) != number - 1) return false;
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      if (is_behind(call_.payloads[i])) return false;
    }
    return awaited_by_launch(number - 1) < number - 1;
  }

  // True if a round sends only sums. Its receive buffer is free as soon as the previous round has
  // ended. By then the last round that sent from the buffer has ended, too, and since that round no
  // launch has used the buffer.
  bool is_free_ahead(int32_t number) const {
    if (number < 1) return false;
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      if (!is_behind(call_.payloads[i]) && sent_step(call_.payloads[i], number) >= 0) return false;
    }
    return true;
  }

  // The last round that launch t must wait for; the launch waits for all earlier rounds, too. -1:
  // none.
  int32_t awaited_by_launch(int32_t t) const {
    int32_t last = -1;
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      const baracuda_ring_payload& payload = call_.payloads[i];
      const int32_t number = is_behind(payload)
                                 ? (call_.program->launch_adds ? received_sum(payload, t) : -1)
                                 : received_chunk(payload, t);
      if (number > last) last = number;
    }
    return last;
  }

  // The last round that must have arrived before the share of launch t is added to a received sum.
  // -1: there is no received sum, or the launch itself adds.
  int32_t awaited_by_add(int32_t t) const {
    if (call_.program->launch_adds) return -1;
    int32_t last = -1;
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      const int32_t number = received_sum(call_.payloads[i], t);
      if (number > last) last = number;
    }
    return last;
  }

  // True if the share of launch `number` is added to a received sum by the program's `add`. If
  // `number` is launches(), which is no launch: true if a sum comes home.
  bool has_sum(int32_t number) const {
    if (number < launches()) return awaited_by_add(number) >= 0;
    for (int32_t part = 0; part < parts_; ++part) {
      if (home(part) >= 0) return true;
    }
    return false;
  }

  // The round in which the sum of this rank's own chunk comes home, for payloads of this part.
  // -1: no sum was sent.
  int32_t home(int32_t part) const {
    const int32_t number = (steps_ - 1) * parts_ + part + 1;
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      const baracuda_ring_payload& payload = call_.payloads[i];
      if (is_behind(payload) && sent_step(payload, number) >= 0) return number;
    }
    return -1;
  }

  // Fills in the sends and receives of a round. A received chunk is contiguous in one buffer, so it
  // is one message. The caller's own chunk is one message for each piece, even if the pieces are
  // adjacent: the receiver must expect the same messages, and does not know the sender's addresses.
  void fill(int32_t number, baracuda_ring_round* round) const {
    round->number = number;
    round->send_count = 0;
    round->receive_count = 0;
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      const baracuda_ring_payload& payload = call_.payloads[i];
      const int32_t step = sent_step(payload, number);
      if (step < 0) continue;
      const baracuda_ring_hop& hop = call_.hops[step];
      char* const into = static_cast<char*>(payload.buffers[(step + 1) & 1]);
      if (is_behind(payload) || step > 0) {
        const int64_t bytes = chunk_bytes(payload);
        round->sends[round->send_count++] = {payload.buffers[step & 1], bytes, hop.send_to};
        round->receives[round->receive_count++] = {into, bytes, hop.recv_from};
        continue;
      }
      int64_t offset = 0;
      for (int32_t j = 0; j < payload.pieces; ++j) {
        const int64_t bytes = payload.piece_bytes[j];
        round->sends[round->send_count++] = {payload.own[j], bytes, hop.send_to};
        round->receives[round->receive_count++] = {into + offset, bytes, hop.recv_from};
        offset += bytes;
      }
    }
  }

  // Fills in what the program gets for launch t and for adding its share. t = launches() + p stands
  // for the addition of the sums of part p that come home.
  void fill(int32_t t, baracuda_ring_step* at) const {
    at->step = step_of(t);
    at->part = part_of(t);
    for (int32_t i = 0; i < call_.payload_count; ++i) {
      const baracuda_ring_payload& payload = call_.payloads[i];
      for (int32_t j = 0; j < payload.pieces; ++j) at->chunk[i][j] = at->received[i][j] = nullptr;
      if (!is_behind(payload)) {
        fill_chunk(payload, at->step, at->chunk[i]);
      } else if (payload.part == at->part) {
        fill_share(payload, at->step, at->chunk[i], at->received[i]);
      }
    }
  }

  static bool is_behind(const baracuda_ring_payload& payload) {
    return payload.timing == BARACUDA_RING_BEHIND;
  }

 private:
  int32_t step_of(int32_t t) const { return t >> shift_; }
  int32_t part_of(int32_t t) const { return t & shift_; }

  // The step whose chunk or sum of this payload is sent in round `number`. -1: none.
  int32_t sent_step(const baracuda_ring_payload& payload, int32_t number) const {
    const int32_t t = is_behind(payload) ? number - 1 : number;
    if (t < 0 || part_of(t) != payload.part) return -1;
    const int32_t step = step_of(t);
    const bool travels = is_behind(payload) ? step >= 1 && step < steps_ : step + 1 < steps_;
    return travels && chunk_bytes(payload) > 0 ? step : -1;
  }
  int32_t received_chunk(const baracuda_ring_payload& payload, int32_t t) const {
    const int32_t step = step_of(t);
    if (step < 1 || payload.part > part_of(t)) return -1;
    const int32_t number = (step - 1) * parts_ + payload.part;
    return sent_step(payload, number) >= 0 ? number : -1;
  }
  int32_t received_sum(const baracuda_ring_payload& payload, int32_t t) const {
    if (!is_behind(payload) || step_of(t) < 2 || payload.part != part_of(t)) return -1;
    const int32_t number = t + 1 - parts_;
    return sent_step(payload, number) >= 0 ? number : -1;
  }

  static void fill_chunk(const baracuda_ring_payload& payload, int32_t step, void** chunk) {
    if (step > 0) return split_chunk(payload, payload.buffers[step & 1], chunk);
    for (int32_t j = 0; j < payload.pieces; ++j) chunk[j] = payload.own[j];
  }
  void fill_share(const baracuda_ring_payload& payload, int32_t step, void** chunk,
                  void** received) const {
    void* const sum = payload.buffers[step & 1];
    if (step == 0 || step == steps_) {
      for (int32_t j = 0; j < payload.pieces; ++j) chunk[j] = payload.own[j];
    } else {
      // The share of step 1 starts the sum in place. A later share is kept apart until it is added.
      const bool apart = step > 1 && !call_.program->launch_adds;
      split_chunk(payload, apart ? payload.buffers[2] : sum, chunk);
    }
    if (step > 1 || (step == 1 && step == steps_)) split_chunk(payload, sum, received);
  }

  const baracuda_ring_call& call_;
  const int32_t steps_;
  const int32_t parts_;
  const int32_t shift_;
};

}  // namespace baracuda
