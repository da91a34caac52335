// An all-gather of a few bytes: each rank's bytes go once around the ring.
#include "ring/all_gather.h"

#include "baracuda/status.h"
#include "common/error.h"
#include "ring/device_scope.h"
#include "runtime/scratch.h"

namespace baracuda {
namespace {

// What a function of the transport returned.
int32_t returned(int32_t status, const char* call) {
  return with_record(status, call, BARACUDA_TRANSPORT_ERROR);
}

// Sends a slot to the next rank (step 0: this rank's own, then the one that it received last), and
// receives one from the previous rank.
int32_t hop(const baracuda_ring_endpoint& endpoint, char* slots, int64_t bytes, int32_t step) {
  const baracuda_transport& transport = endpoint.transport;
  const int32_t p = transport.world_size;
  const int32_t rank = transport.rank;
  char* const out = slots + (rank - step + p) % p * bytes;
  char* const in = slots + (rank - step - 1 + p) % p * bytes;
  expect_record();
  int32_t status = returned(transport.group_start(transport.context), "group_start");
  if (status != BARACUDA_OK) return status;
  void* const stream = endpoint.ring_stream;
  status = returned(transport.send(transport.context, out, bytes, (rank + 1) % p, stream), "send");
  if (status == BARACUDA_OK)
    status =
        returned(transport.recv(transport.context, in, bytes, (rank + p - 1) % p, stream), "recv");
  if (status == BARACUDA_OK) return returned(transport.group_end(transport.context), "group_end");
  // The group is closed after a failure, too. group_end may overwrite the error record.
  const baracuda_error failure = *baracuda_last_error();
  transport.group_end(transport.context);
  return restore_failure(failure);
}

}  // namespace

int32_t enqueue_all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                           char* slots) {
  const baracuda_transport& transport = endpoint.transport;
  int32_t status = endpoint.ops->copy(slots + transport.rank * bytes, mine, bytes,
                                      endpoint.ring_stream);
  for (int32_t step = 0; step + 1 < transport.world_size && status == BARACUDA_OK; ++step) {
    status = hop(endpoint, slots, bytes, step);
  }
  return status;
}

int32_t fetch_slots(const baracuda_ring_endpoint& endpoint, const char* slots, int64_t bytes,
                    void* all) {
  const int32_t status = endpoint.ops->copy(all, slots, endpoint.transport.world_size * bytes,
                                            endpoint.ring_stream);
  return status == BARACUDA_OK ? endpoint.ops->stream_synchronize(endpoint.ring_stream) : status;
}

}  // namespace baracuda

extern "C" int32_t baracuda_ring_all_gather(baracuda_ring_endpoint* endpoint, const void* mine,
                                            int64_t bytes, void* all) {
  baracuda::DeviceScope device;
  int32_t status = device.enter(*endpoint->ops, endpoint->device);
  if (status != BARACUDA_OK) return status;
  void* slots = nullptr;
  status = baracuda::scratch_allocate(endpoint->device, endpoint->transport.world_size * bytes,
                                      &slots);
  if (status == BARACUDA_OK) {
    status = baracuda::enqueue_all_gather(*endpoint, mine, bytes, static_cast<char*>(slots));
  }
  if (status == BARACUDA_OK) {
    status = baracuda::fetch_slots(*endpoint, static_cast<char*>(slots), bytes, all);
  }
  if (status == BARACUDA_OK) {
    baracuda::scratch_free(endpoint->device, slots);
    return status;
  }
  const baracuda_error failure = *baracuda_last_error();
  baracuda::scratch_free(endpoint->device, slots);
  return baracuda::restore_failure(failure);
}
