// Registers the memory that the previous rank may write to, and opens the next rank's.
#include <cstring>

#include "baracuda/status.h"
#include "common/error.h"
#include "ring/device_scope.h"
#include "ring/exchange/peer/peer.h"

namespace baracuda {

PeerOffer peer_offer(baracuda_peer& peer, void* data, int64_t bytes, bool to_previous) {
  PeerOffer offer{};
  offer.address = reinterpret_cast<uint64_t>(data);
  offer.bytes = bytes;
  if (to_previous && !peer.previous_in_process) {
    offer.status = peer.ops->export_memory(data, bytes, &offer.memory);
    if (offer.status != BARACUDA_OK) peer.detail = baracuda_last_error()->message;
  }
  return offer;
}

int32_t peer_take(baracuda_peer& peer, const PeerOffer& offer, PeerBuffer& buffer) {
  buffer.next_bytes = offer.bytes;
  if (peer.next_in_process) {
    buffer.next = reinterpret_cast<char*>(offer.address);
    const int32_t status = peer.ops->reach(buffer.next);
    if (status != BARACUDA_OK) peer.detail = baracuda_last_error()->message;
    return status;
  }
  const int32_t status = peer.ops->open_memory(&offer.memory, &buffer.opened);
  if (status != BARACUDA_OK) {
    peer.detail = baracuda_last_error()->message;
    return status;
  }
  buffer.next = static_cast<char*>(buffer.opened) + offer.memory.offset;
  return BARACUDA_OK;
}

void peer_return(baracuda_peer& peer, PeerBuffer& buffer) {
  if (buffer.opened != nullptr) peer.ops->close_memory(buffer.opened);
  buffer.opened = buffer.next = nullptr;
}

namespace {

constexpr const char* kCall = "baracuda_peer_register";

// A rank's result of a part of the registration. Every rank gets all results, so all fail alike.
struct Report {
  int32_t status;
  char why[160];
};

Report report(int32_t status, const std::string& why) {
  Report mine{};
  mine.status = status;
  std::strncpy(mine.why, why.c_str(), sizeof(mine.why) - 1);
  return mine;
}

int32_t register_buffer(baracuda_peer& peer, void* data, int64_t bytes) {
  struct Offered {
    PeerOffer offer;
    Report report;
  };
  const size_t ranks = static_cast<size_t>(peer.world_size());
  Offered mine{};
  if (data == nullptr || bytes <= 0) {
    mine.report = report(BARACUDA_INVALID_ARGUMENT, "it is empty");
  } else {
    mine.offer = peer_offer(peer, data, bytes, peer.in_by_peer);
    mine.report = report(mine.offer.status, peer.detail);
  }
  std::vector<Offered> offers(ranks);
  int32_t status = peer.all_gather(&mine, sizeof(mine), offers.data());
  if (status != BARACUDA_OK) return status;

  const auto fail_alike = [](const char* what, int32_t rank, const Report& found) {
    const int32_t kind = found.status == BARACUDA_INVALID_ARGUMENT ? BARACUDA_INVALID_ARGUMENT
                                                                   : BARACUDA_UNSUPPORTED;
    fail(kind, kCall, "buffer: got one on rank %d that %s: %s", rank, what, found.why);
    locate_failure(rank, -1);
    return kind;
  };
  for (size_t r = 0; r < ranks; ++r) {
    if (offers[r].report.status == BARACUDA_OK) continue;
    return fail_alike("cannot be shared with the previous rank", static_cast<int32_t>(r),
                      offers[r].report);
  }
  PeerBuffer buffer{static_cast<char*>(data), bytes, nullptr, 0, nullptr};
  int32_t taken = BARACUDA_OK;
  if (peer.out_by_peer) {
    taken = peer_take(peer, offers[static_cast<size_t>(peer.next())].offer, buffer);
  }
  const Report opened = report(taken, peer.detail);
  std::vector<Report> reports(ranks);
  status = peer.all_gather(&opened, sizeof(opened), reports.data());
  if (status == BARACUDA_OK) {
    for (size_t r = 0; r < ranks && status == BARACUDA_OK; ++r) {
      if (reports[r].status == BARACUDA_OK) continue;
      const int32_t owner = static_cast<int32_t>((r + 1) % ranks);
      status = fail_alike("cannot be opened by the previous rank", owner, reports[r]);
    }
  }
  if (status != BARACUDA_OK) {
    const baracuda_error failure = *baracuda_last_error();
    peer_return(peer, buffer);
    return restore_failure(failure);
  }
  peer.buffers.push_back(buffer);
  return BARACUDA_OK;
}

}  // namespace
}  // namespace baracuda

using namespace baracuda;

extern "C" int32_t baracuda_peer_register(baracuda_peer* peer, void* data, int64_t bytes) {
  DeviceScope device;
  const int32_t status = device.enter(*peer->end.ops, peer->end.device);
  return status == BARACUDA_OK ? register_buffer(*peer, data, bytes) : status;
}

extern "C" int32_t baracuda_peer_is_registered(const baracuda_peer* peer, const void* data,
                                               int64_t bytes) {
  return peer->find(data, bytes) >= 0 ? 1 : 0;
}
