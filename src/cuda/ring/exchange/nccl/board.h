// The board: shared memory by which the ranks of an NCCL ring on one machine report errors. NCCL
// does not report a rank's error to the other ranks, and they would wait for this rank. A rank
// refuses a call if an error, such as an invalid argument, keeps it from making the call. It then
// posts a note on the board, with the number of the call and the error. If the ring has failed for
// a rank, the rank posts that failure.
//
// Every rank counts its calls, and all ranks make the same calls. If another rank has refused a
// call that this rank has not begun, this rank refuses the call too, and the ring can still be
// used. If this rank has begun the call, the ring fails on all ranks of the machine. A registration
// of a buffer and a split are counted as runs. A comparison of problems (validate()) is also
// counted as a call, and is posted as a note. If call n is a comparison on one rank and a run on
// another, it is refused, because the ranks would misread each other's messages.
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
  // Joins the board with that name. The first rank creates it. rank: this rank, below world_size.
  // NULL, without an error record, if there is no shared memory: then only deadlines end a wait.
  static std::unique_ptr<NcclBoard> join(const std::string& name, int32_t rank, int32_t world_size);
  ~NcclBoard();
  NcclBoard(const NcclBoard&) = delete;
  NcclBoard& operator=(const NcclBoard&) = delete;

  const std::string& name() const { return name_; }
  // Removes the board's file name. To be called when every rank of this machine has joined.
  void close_entry() const;

  enum Kind : int32_t { kRefused, kCompared, kRun };

  // Counts a call of this rank: a run or a comparison. False if another rank has refused it, or
  // makes the other kind of call; this rank then refuses it too, and `found` gets the reason.
  bool begin(Kind kind, baracuda_error* found);
  // Refuses a call of this rank: its current one if begun, else its next one.
  void refuse(const baracuda_error& reason, bool begun);
  // Posts that the ring has failed.
  void fail(const baracuda_error& reason);
  // True, with the reason, if that was posted. Any thread may call it.
  bool has_failed(baracuda_error* found) const;
  // True, with the reason, if the ring has failed, or if another rank's note conflicts with a call
  // that this rank has begun. Only one thread may call it. Cheap while nothing is new.
  bool poll(baracuda_error* found);

 private:
  // The number of a rank's latest notes that are kept. Another rank misses notes if more are
  // written between two of its polls.
  static constexpr int kRemembered = 32;

  struct Note {
    std::atomic<int64_t> call;  // number of the call, from 1 on; 0: none
    Kind kind;  // kind and reason are valid if `call` is the same before and after they are read
    baracuda_error reason;
  };
  struct Slot {
    std::atomic<int64_t> count;
    std::array<Note, kRemembered> notes;
  };
  struct Page {
    std::atomic<uint32_t> news;   // counts notes and failures
    std::atomic<int32_t> failed;  // 0: no; 1: `failure` is being written; 2: yes
    baracuda_error failure;
    Slot slots[1];  // world_size of them
  };

  NcclBoard(std::string name, Page* page, size_t bytes, int32_t rank, int32_t world_size);
  void note(Kind kind, const baracuda_error& reason, int64_t call);
  static const Note* find(const Slot& slot, int64_t call);
  // True, with the reason in `found`, if a call of this kind conflicts with another rank's note of
  // the same call.
  static bool differs(Kind kind, const Note& note, int32_t rank, baracuda_error* found);
  // Compares the other ranks' new notes with this rank's calls.
  void judge();
  Slot& mine() const { return page_->slots[rank_]; }

  const std::string name_;
  Page* const page_;
  const size_t bytes_;
  const int32_t rank_;
  const int32_t world_size_;
  std::mutex mutex_;  // held by refuse(), and by begin() and poll() unless nothing is new
  std::vector<int64_t> judged_;  // of each rank: how many of its notes judge() has compared
  // A call that this rank has begun conflicts with another rank's note: a refusal, or the other
  // kind of call.
  bool missed_ = false;
  baracuda_error missed_reason_{};
  std::atomic<int64_t> calls_{0};
  uint32_t seen_ = 0;  // value of `news` at the last poll()
  // Lets begin() skip the notes. judge() stores the value of `news` here if no note is about a call
  // that this rank has yet to begin. While `news` keeps this value, there is no such note.
  std::atomic<uint32_t> quiet_{0};
};

// The name of a ring's board, made from bytes that only its ranks know.
std::string board_name(const void* secret, size_t bytes);

}  // namespace baracuda
