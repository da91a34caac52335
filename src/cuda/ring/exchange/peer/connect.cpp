// Finds the hops (connections from a rank to the next one) that can use the exchange by peer. The
// ranks tell each other what they offer, neighbours make a trial, and all ranks get the same
// verdicts. A candidate is a hop that has not been rejected so far.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"
#include "ring/device_scope.h"
#include "ring/exchange/peer/peer.h"
#include "ring/exchange/peer/trial.h"
#include "runtime/scratch.h"

namespace baracuda {
namespace {

constexpr const char* kCall = "baracuda_peer_connect";
constexpr int64_t kTrialBytes = 4096;

struct Hello {
  int32_t wish;
  int32_t wait;
  int32_t has_device;
  int32_t reaches;  // its device can copy to another device's memory in the same process
  char host[16];
  char process[16];
  char nonce[16];
};

struct Mapped {
  int32_t is_mapped;
  int32_t has_no_memory;  // for the trial
  PeerOffer offer;
};

// Whether a part of the set-up worked on this rank: for its hop to the next rank (out), and for the
// hop from the previous rank (in).
struct Outcome {
  int32_t out;
  int32_t in;
  char detail[128];
};

bool host_id(char id[16]) {
  std::memset(id, 0, 16);
  std::FILE* const file = std::fopen("/proc/sys/kernel/random/boot_id", "r");
  if (file == nullptr) return false;
  char text[64] = "";
  const bool read = std::fgets(text, sizeof(text), file) != nullptr;
  std::fclose(file);
  int digits = 0;
  for (const char* c = text; read && *c != '\0' && digits < 32; ++c) {
    const int value = *c >= '0' && *c <= '9'   ? *c - '0'
                      : *c >= 'a' && *c <= 'f' ? *c - 'a' + 10
                                               : -1;
    if (value < 0) continue;
    id[digits / 2] = static_cast<char>(id[digits / 2] << 4 | value);
    ++digits;
  }
  return digits == 32;
}

class Connection {
 public:
  explicit Connection(baracuda_peer& peer, double trial_seconds)
      : peer_(peer),
        trial_seconds_(trial_seconds),
        ranks_(static_cast<size_t>(peer.world_size())) {}

  ~Connection() {
    for (PeerBuffer& buffer : peer_.buffers) peer_return(peer_, buffer);
    peer_.buffers.clear();
    scratch_free(peer_.end.device, memory_);
  }

  int32_t execute() {
    peer_.verdicts.assign(ranks_, PeerVerdict());
    int32_t status = greet();
    if (status == BARACUDA_OK && any_candidate()) status = share_words();
    if (status == BARACUDA_OK && any_candidate()) status = share_memory();
    if (status == BARACUDA_OK && any_candidate()) status = try_hops();
    if (status != BARACUDA_OK) return status;
    use_candidates();
    return require();
  }

 private:
  size_t after(size_t rank) const { return (rank + 1) % ranks_; }
  bool is_candidate(size_t rank) const {
    return peer_.verdicts[rank].reason == BARACUDA_PEER_WORKS;
  }
  bool any_candidate() const {
    for (size_t r = 0; r < ranks_; ++r) {
      if (is_candidate(r)) return true;
    }
    return false;
  }
  void reject(size_t rank, int32_t reason, const char* detail = "") {
    if (!is_candidate(rank)) return;
    peer_.verdicts[rank] = {reason, detail};
  }
  void use_candidates() {
    peer_.out_by_peer = is_candidate(static_cast<size_t>(peer_.rank()));
    peer_.in_by_peer = is_candidate(static_cast<size_t>(peer_.previous()));
  }

  template <typename T>
  int32_t gather(const T& mine, std::vector<T>& all) {
    all.resize(ranks_);
    return peer_.all_gather(&mine, sizeof(T), all.data());
  }

  int32_t greet() {
    Hello mine{};
    mine.wish = peer_.wish;
    mine.wait = peer_.wait;
    std::memcpy(mine.process, peer_.process, 16);
    mine.has_device = peer_.ops != nullptr && host_id(mine.host) && random_bytes(mine.nonce);
    mine.reaches = mine.has_device != 0 && peer_.ops->reach != nullptr;
    const int32_t status = gather(mine, hellos_);
    if (status != BARACUDA_OK) return status;
    for (size_t r = 0; r < ranks_; ++r) {
      const Hello& a = hellos_[r];
      const Hello& b = hellos_[after(r)];
      for (const Hello* end : {&a, &b}) {
        if (end->wish == BARACUDA_PEER_NEVER) {
          char who[64];
          const size_t at = static_cast<size_t>(end - hellos_.data());
          std::snprintf(who, sizeof(who), "rank %d", static_cast<int>(at));
          reject(r, BARACUDA_PEER_NOT_ASKED, who);
        }
      }
      if (a.has_device == 0 || b.has_device == 0) reject(r, BARACUDA_PEER_NO_DEVICE);
      if (std::memcmp(a.host, b.host, 16) != 0) reject(r, BARACUDA_PEER_OTHER_HOST);
      if (std::memcmp(a.process, b.process, 16) == 0 && !(a.reaches && b.reaches)) {
        reject(r, BARACUDA_PEER_ONE_PROCESS);
      }
    }
    const Hello& next = hellos_[static_cast<size_t>(peer_.next())];
    const Hello& previous = hellos_[static_cast<size_t>(peer_.previous())];
    peer_.next_wait = next.wait;
    peer_.next_in_process = std::memcmp(next.process, peer_.process, 16) == 0;
    peer_.previous_in_process = std::memcmp(previous.process, peer_.process, 16) == 0;
    return BARACUDA_OK;
  }

  bool has_candidate(size_t rank) const {
    return is_candidate(rank) || is_candidate((rank + ranks_ - 1) % ranks_);
  }

  // On each machine, the first rank that has a hop to try creates the shared file.
  int32_t share_words() {
    const size_t me = static_cast<size_t>(peer_.rank());
    size_t leader = ranks_;
    for (size_t r = 0; r < ranks_ && leader == ranks_; ++r) {
      if (has_candidate(r) && std::memcmp(hellos_[r].host, hellos_[me].host, 16) == 0) leader = r;
    }
    const bool takes_part = has_candidate(me);
    const char* const nonce = leader < ranks_ ? hellos_[leader].nonce : nullptr;
    const int32_t size = peer_.world_size();
    Mapped mine{};
    if (leader == me && peer_.file.create(nonce, size)) mine.is_mapped = 1;
    std::vector<Mapped> all;
    int32_t status = gather(mine, all);  // afterwards the file exists
    if (status != BARACUDA_OK) return status;
    if (takes_part && all[leader].is_mapped != 0) {
      if (leader != me) mine.is_mapped = peer_.file.open(nonce, size) ? 1 : 0;
    } else {
      mine.is_mapped = 0;
    }
    if (mine.is_mapped != 0) {
      void* device_words = nullptr;
      const bool good =
          peer_.file.hold(peer_.rank()) &&
          peer_.ops->map_words(peer_.file.data(), static_cast<int64_t>(peer_.file.bytes()),
                               &device_words) == BARACUDA_OK;
      peer_.device_words = static_cast<char*>(device_words);
      mine.is_mapped = good ? 1 : 0;
      __atomic_store_n(&peer_.file.hop(peer_.rank()).idle.state, 1, __ATOMIC_SEQ_CST);
    }
    if (mine.is_mapped != 0 &&
        scratch_allocate(peer_.end.device, kTrialBytes, &memory_) != BARACUDA_OK) {
      mine.is_mapped = 0;
      mine.has_no_memory = 1;
    }
    if (mine.is_mapped != 0) {
      // The first half of the memory is for receiving, the second half for sending.
      mine.offer = peer_offer(peer_, memory_, kTrialBytes / 2,
                              is_candidate(static_cast<size_t>(peer_.previous())));
    }
    status = gather(mine, mapped_);
    peer_.file.unlink();
    if (status != BARACUDA_OK) return status;
    for (size_t r = 0; r < ranks_; ++r) {
      const Mapped& next = mapped_[after(r)];
      if (mapped_[r].has_no_memory != 0 || next.has_no_memory != 0) {
        reject(r, BARACUDA_PEER_TRIAL_FAILED, "a rank has no memory for it");
      } else if (mapped_[r].is_mapped == 0 || next.is_mapped == 0) {
        reject(r, BARACUDA_PEER_NO_SHARED_FILE);
      } else if (next.offer.status != BARACUDA_OK) {
        reject(r, BARACUDA_PEER_NO_EXPORT);
      }
    }
    return BARACUDA_OK;
  }

  int32_t share_outcome(const Outcome& mine, int32_t reason) {
    std::vector<Outcome> all;
    const int32_t status = gather(mine, all);
    if (status != BARACUDA_OK) return status;
    for (size_t r = 0; r < ranks_; ++r) {
      if (all[r].out == 0) reject(r, reason, all[r].detail);
      if (all[after(r)].in == 0) reject(r, reason, all[after(r)].detail);
    }
    return BARACUDA_OK;
  }

  int32_t share_memory() {
    use_candidates();
    PeerBuffer buffer{static_cast<char*>(memory_), kTrialBytes / 2, nullptr, 0, nullptr};
    Outcome mine{1, 1, ""};
    if (peer_.out_by_peer) {
      const PeerOffer& offer = mapped_[static_cast<size_t>(peer_.next())].offer;
      mine.out = peer_take(peer_, offer, buffer) == BARACUDA_OK ? 1 : 0;
      if (mine.out == 0) {
        std::snprintf(mine.detail, sizeof(mine.detail), "%s", peer_.detail.c_str());
      }
    }
    peer_.buffers.push_back(buffer);
    return share_outcome(mine, BARACUDA_PEER_NO_ACCESS);
  }

  // Runs one round on the hops that are left, and checks the received data.
  int32_t try_hops() {
    use_candidates();
    Outcome mine{1, 1, ""};
    const Hello& own = hellos_[static_cast<size_t>(peer_.rank())];
    const Hello& previous = hellos_[static_cast<size_t>(peer_.previous())];
    PeerTrial trial(peer_, memory_, kTrialBytes / 2, own.nonce, previous.nonce);
    const bool works = !peer_.has_hops() || trial.run(trial_seconds_);
    if (trial.interrupted() != BARACUDA_OK) {
      return fail(trial.interrupted(), kCall, "a signal came");
    }
    if (!works) {
      mine.out = mine.in = 0;
      std::snprintf(mine.detail, sizeof(mine.detail), "%s", peer_.detail.c_str());
    }
    // The neighbour's memory is closed before its owner frees it.
    for (PeerBuffer& buffer : peer_.buffers) peer_return(peer_, buffer);
    return share_outcome(mine, BARACUDA_PEER_TRIAL_FAILED);
  }

  int32_t require() {
    for (size_t r = 0; r < ranks_; ++r) {
      const bool required = hellos_[r].wish == BARACUDA_PEER_REQUIRED ||
                            hellos_[after(r)].wish == BARACUDA_PEER_REQUIRED;
      if (!required || is_candidate(r)) continue;
      const PeerVerdict& verdict = peer_.verdicts[r];
      // Every rank of the ring says the same, also those that asked for another exchange.
      const size_t asked = hellos_[r].wish == BARACUDA_PEER_REQUIRED ? r : after(r);
      fail(BARACUDA_UNSUPPORTED, kCall,
           "exchange: got \"peer\" on rank %d, must be \"auto\" or \"nccl\" there: the hop from "
           "rank %d to rank %d cannot be by peer: %s%s%s",
           static_cast<int>(asked), static_cast<int>(r), static_cast<int>(after(r)),
           baracuda_peer_reason_text(verdict.reason), verdict.detail.empty() ? "" : ": ",
           verdict.detail.c_str());
      locate_failure(peer_.rank(), -1);
      return BARACUDA_UNSUPPORTED;
    }
    return BARACUDA_OK;
  }

  baracuda_peer& peer_;
  const double trial_seconds_;
  const size_t ranks_;
  std::vector<Hello> hellos_;
  std::vector<Mapped> mapped_;
  void* memory_ = nullptr;
};

bool tell_processes_apart(char process[16]) {
  // A random id of this loaded library. Ranks with the same id are in one process.
  static char id[16];
  static const bool made = random_bytes(id);
  std::memcpy(process, id, 16);
  return made;
}

}  // namespace
}  // namespace baracuda

using namespace baracuda;

extern "C" int32_t baracuda_peer_connect(baracuda_ring_endpoint* endpoint,
                                         const baracuda_peer_options* options,
                                         baracuda_peer** peer) {
  *peer = nullptr;
  int32_t status = check_struct(kCall, "options", options);
  if (status != BARACUDA_OK) return status;
  std::unique_ptr<baracuda_peer> made(new (std::nothrow) baracuda_peer(*endpoint));
  if (made == nullptr) {
    return fail(BARACUDA_OUT_OF_MEMORY, kCall, "no memory for the exchange");
  }
  if (!tell_processes_apart(made->process)) {
    return fail(BARACUDA_OUT_OF_MEMORY, kCall, "getrandom() gave no random id for this process");
  }
  made->wish = options->wish;
  made->wait = options->wait;
  made->ops = options->ops;
  made->gather = options->all_gather;
  made->gather_context = options->context;
  if (made->ops == nullptr || (made->wait == BARACUDA_PEER_WAIT_GATE && !made->ops->gate)) {
    made->wait = BARACUDA_PEER_WAIT_EVENT;
  }
  DeviceScope device;
  status = device.enter(*endpoint->ops, endpoint->device);
  if (status != BARACUDA_OK) return status;
  try {
    status = Connection(*made, options->trial_seconds).execute();
  } catch (const std::bad_alloc&) {
    status = fail(BARACUDA_OUT_OF_MEMORY, kCall, "no memory for the exchange");
  }
  if (status == BARACUDA_OK && made->has_hops()) {
    endpoint->exchange = &peer_exchange();
    endpoint->exchange_context = made.get();
  }
  if (status == BARACUDA_OK) {
    *peer = made.release();
    return status;
  }
  const baracuda_error failure = *baracuda_last_error();
  baracuda_peer_close(made.release(), PeerTrial::kReleaseSeconds, nullptr);
  return restore_failure(failure);
}
