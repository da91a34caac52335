// What the ranks of a ring that share a machine tell each other beside NCCL: which of its calls a rank
// has refused, and that the ring has failed. NCCL itself tells the others nothing, and they would wait.
//
// Every rank counts its calls, and all make the same ones. One that finds its call refused by another
// rank, before it has begun, refuses it too, and the ring goes on. Where it has begun already, the
// ring fails on all of them. A comparison of problems is a call, too, and one that a rank makes where
// another runs is refused like that: their messages would be misread.
#pragma once

#include <stdint.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "baracuda/status.h"

namespace baracuda {

class NcclBoard {
 public:
  // Joins the board of that name, which whoever comes first makes. rank: this one's among at most
  // world_size. NULL, without a record, where there is no shared memory: then deadlines alone end
  // what waits.
  static std::unique_ptr<NcclBoard> join(const std::string& name, int32_t rank, int32_t world_size);
  ~NcclBoard();
  NcclBoard(const NcclBoard&) = delete;
  NcclBoard& operator=(const NcclBoard&) = delete;

  const std::string& name() const { return name_; }
  // Nobody joins any more: every rank of this machine has.
  void close_entry() const;

  enum Kind : int32_t { kRefused, kCompared, kRun };

  // Counts a call of this rank, a run or a comparison. False where another rank has refused it, or
  // compares where this one runs: then this one refuses it too, with `found`.
  bool begin(Kind kind, baracuda_error* found);
  // Refuses this rank's call: the one that it has begun, or else its next one.
  void refuse(const baracuda_error& reason, bool begun);
  // Says that the ring is of no use any more.
  void fail(const baracuda_error& reason);
  // True where the ring has failed, or another rank has refused a call that this one has begun. For
  // one thread, and cheap while nothing is new.
  bool look(baracuda_error* found);

 private:
  // How many of a rank's notes the others can still find: more than it writes between two looks.
  static constexpr int kRemembered = 32;

  struct Note {
    std::atomic<int64_t> call;  // its number, from 1 on; 0: none
    Kind kind;                  // whole, as the reason, where the number is the same before and after
    baracuda_error reason;
  };
  struct Slot {
    std::atomic<int64_t> count;
    std::array<Note, kRemembered> notes;
  };
  struct Page {
    std::atomic<uint32_t> news;   // counts notes and failures
    std::atomic<int32_t> failed;  // 0, 1 while it is written, 2
    baracuda_error failure;
    Slot slots[1];  // world_size of them
  };

  NcclBoard(std::string name, Page* page, size_t bytes, int32_t rank, int32_t world_size);
  void note(Kind kind, const baracuda_error& reason, int64_t call);
  static const Note* find(const Slot& slot, int64_t call);
  // Why a call of this kind is at odds with another rank's note of it.
  static bool differs(Kind kind, const Note& note, int32_t rank, baracuda_error* found);
  // Compares the others' new notes with this rank's own, while it remembers those.
  void judge();
  Slot& mine() const { return page_->slots[rank_]; }

  const std::string name_;
  Page* const page_;
  const size_t bytes_;
  const int32_t rank_;
  const int32_t world_size_;
  std::mutex mutex_;  // begin, refuse and look, where there are news
  std::vector<int64_t> judged_;  // how many notes of each rank
  bool missed_ = false;          // one came too late: this rank has begun the call
  baracuda_error missed_reason_{};
  std::atomic<int64_t> calls_{0};
  uint32_t seen_ = 0;  // of the news, by look()
  std::atomic<uint32_t> quiet_{0};  // news of which nothing is about a call yet to come
};

// The name of the board of a ring, from bytes that its ranks alone share.
std::string board_name(const void* secret, size_t bytes);

}  // namespace baracuda
