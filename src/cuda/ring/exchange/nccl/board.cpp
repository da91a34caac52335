#include "ring/exchange/nccl/board.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

namespace baracuda {
namespace {

uint64_t hash(const void* data, size_t bytes, uint64_t seed) {  // FNV-1a
  uint64_t value = 14695981039346656037ull ^ seed;
  for (size_t i = 0; i < bytes; ++i) {
    value = (value ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211ull;
  }
  return value;
}

}  // namespace

std::string board_name(const void* secret, size_t bytes) {
  char name[64];
  std::snprintf(name, sizeof(name), "/dev/shm/baracuda-%016llx%016llx",
                static_cast<unsigned long long>(hash(secret, bytes, 0)),
                static_cast<unsigned long long>(hash(secret, bytes, 0x9e3779b97f4a7c15ull)));
  return name;
}

NcclBoard::NcclBoard(std::string name, Page* page, size_t bytes, int32_t rank, int32_t world_size)
    : name_(std::move(name)),
      page_(page),
      bytes_(bytes),
      rank_(rank),
      world_size_(world_size),
      judged_(static_cast<size_t>(world_size)) {}

std::unique_ptr<NcclBoard> NcclBoard::join(const std::string& name, int32_t rank,
                                           int32_t world_size) {
  static_assert(std::atomic<int64_t>::is_always_lock_free, "it is shared between processes");
  const size_t bytes = sizeof(Page) + sizeof(Slot) * static_cast<size_t>(world_size - 1);
  const int file = open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) return nullptr;
  // posix_fallocate() makes new bytes zero, and does nothing when a later rank calls it. It fails
  // if /dev/shm is full. Without it, the first write to the mapping would raise SIGBUS.
  void* page = posix_fallocate(file, 0, static_cast<off_t>(bytes)) != 0
                   ? MAP_FAILED
                   : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (page == MAP_FAILED) return nullptr;
  std::unique_ptr<NcclBoard> board(
      new (std::nothrow) NcclBoard(name, static_cast<Page*>(page), bytes, rank, world_size));
  if (board == nullptr) munmap(page, bytes);
  return board;
}

NcclBoard::~NcclBoard() { munmap(page_, bytes_); }

void NcclBoard::close_entry() const { unlink(name_.c_str()); }

void NcclBoard::note(Kind kind, const baracuda_error& reason, int64_t call) {
  Slot& slot = mine();
  Note& note = slot.notes[static_cast<size_t>(slot.count % kRemembered)];
  note.call = 0;
  note.kind = kind;
  note.reason = reason;
  note.call = call;
  ++slot.count;
}

const NcclBoard::Note* NcclBoard::find(const Slot& slot, int64_t call) {
  for (const Note& note : slot.notes) {
    if (note.call == call) return &note;
  }
  return nullptr;
}

bool NcclBoard::differs(Kind kind, const Note& note, int32_t rank, baracuda_error* found) {
  const int64_t call = note.call;
  const Kind theirs = note.kind;
  *found = note.reason;
  std::atomic_thread_fence(std::memory_order_acquire);
  const bool whole = call != 0 && note.call == call;
  if (kind == kRefused || (whole && theirs == kCompared && kind == kCompared)) return false;
  if (whole && theirs == kRefused) return true;
  *found = {};
  found->rank = found->step = -1;
  std::snprintf(found->call, sizeof(found->call), "rank %d", rank);
  if (whole) {
    found->status = BARACUDA_INVALID_ARGUMENT;
    std::snprintf(found->message, sizeof(found->message),
                  "it calls validate() where another rank calls run(), register() or split(); all "
                  "ranks must make the same calls with the same problems in the same order");
  } else {  // a newer note is being written over it
    found->status = BARACUDA_ABORTED;
    std::snprintf(found->message, sizeof(found->message), "refused the call");
  }
  return true;
}

bool NcclBoard::begin(Kind kind, baracuda_error* found) {
  const int64_t call = calls_ + 1;
  const uint32_t quiet = quiet_;
  if (kind == kRun && page_->news == quiet) {
    calls_ = call;
    // A note that is posted after this check changes `news`, so poll() compares it with calls_.
    if (page_->news == quiet) return true;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  bool refused = false;
  for (int32_t rank = 0; rank < world_size_ && !refused; ++rank) {
    const Note* theirs = rank == rank_ ? nullptr : find(page_->slots[rank], call);
    refused = theirs != nullptr && differs(kind, *theirs, rank, found);
  }
  if (refused) note(kRefused, *found, call);  // this rank passes the refusal on
  if (!refused && kind == kCompared) note(kCompared, {}, call);
  calls_ = call;
  judge();
  if (refused || kind == kCompared) ++page_->news;
  return !refused;
}

void NcclBoard::refuse(const baracuda_error& reason, bool begun) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t call = begun ? calls_.load() : calls_ + 1;
  note(kRefused, reason, call);
  calls_ = call;
  judge();
  ++page_->news;
}

void NcclBoard::fail(const baracuda_error& reason) {
  int32_t none = 0;
  if (!page_->failed.compare_exchange_strong(none, 1)) return;
  page_->failure = reason;
  page_->failed = 2;
  ++page_->news;
}

bool NcclBoard::has_failed(baracuda_error* found) const {
  if (page_->failed != 2) return false;
  *found = page_->failure;
  return true;
}

bool NcclBoard::poll(baracuda_error* found) {
  if (page_->news == seen_) return false;
  const std::lock_guard<std::mutex> lock(mutex_);
  seen_ = page_->news;
  if (has_failed(found)) return true;
  judge();
  if (missed_) *found = missed_reason_;
  return missed_;
}

void NcclBoard::judge() {
  const uint32_t news = page_->news;
  bool pending = false;
  for (int32_t rank = 0; rank < world_size_ && !missed_; ++rank) {
    const Slot& slot = page_->slots[rank];
    const int64_t count = slot.count;
    int64_t& next = judged_[static_cast<size_t>(rank)];
    if (rank == rank_) continue;
    if (count - next > kRemembered) next = count - kRemembered;
    for (; next < count && !missed_; ++next) {
      const Note& theirs = slot.notes[static_cast<size_t>(next % kRemembered)];
      const int64_t call = theirs.call;
      pending = call == 0 || call > calls_;  // begin() will find it
      if (pending) break;
      const Note* own = find(mine(), call);
      missed_ = differs(own == nullptr ? kRun : own->kind, theirs, rank, &missed_reason_);
    }
    if (pending) return;
  }
  quiet_ = news;
}

}  // namespace baracuda
