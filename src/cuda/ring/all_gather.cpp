// An all-gather of a few bytes: each rank's bytes go once around the ring.
#include "ring/all_gather.h"

#include <cstdint>

#include "baracuda/status.h"
#include "common/error.h"
#include "ring/check_endpoint.h"
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

int32_t check_all_gather(const baracuda_ring_endpoint* endpoint, const void* mine, int64_t bytes,
                         const void* all) {
  constexpr const char* call = "baracuda_ring_all_gather";
  int32_t status = check_endpoint(call, endpoint);
  if (status != BARACUDA_OK) return status;
  const baracuda_stream_ops& ops = *endpoint->ops;
  status = check_functions(call, "endpoint->ops->",
                           {{"copy", ops.copy != nullptr},
                            {"stream_synchronize", ops.stream_synchronize != nullptr}});
  if (status != BARACUDA_OK) return status;
  const int64_t most_bytes = INT64_MAX / endpoint->transport.world_size;
  if (bytes < 0 || bytes > most_bytes) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "bytes: got %lld, must be in [0, %lld]",
                static_cast<long long>(bytes), static_cast<long long>(most_bytes));
  }
  if (bytes > 0 && (mine == nullptr || all == nullptr)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s: got NULL, must be given",
                mine == nullptr ? "mine" : "all");
  }
  return BARACUDA_OK;
}

int32_t all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                   void* all) {
  expect_record();
  DeviceScope device;
  int32_t status = with_record(device.enter(*endpoint.ops, endpoint.device), "set_device");
  if (status != BARACUDA_OK) return status;
  void* memory = nullptr;
  status = scratch_allocate(endpoint.device, endpoint.transport.world_size * bytes, &memory);
  char* const slots = static_cast<char*>(memory);
  if (status == BARACUDA_OK) status = enqueue_all_gather(endpoint, mine, bytes, slots);
  if (status == BARACUDA_OK) status = fetch_slots(endpoint, slots, bytes, all);
  const baracuda_error failure = *baracuda_last_error();
  scratch_free(endpoint.device, memory);
  if (status != BARACUDA_OK) restore_failure(failure);
  return status;
}

}  // namespace

int32_t enqueue_all_gather(const baracuda_ring_endpoint& endpoint, const void* mine, int64_t bytes,
                           char* slots) {
  const baracuda_transport& transport = endpoint.transport;
  expect_record();
  int32_t status = with_record(endpoint.ops->copy(slots + transport.rank * bytes, mine, bytes,
                                                  endpoint.ring_stream),
                               "copy");
  for (int32_t step = 0; step + 1 < transport.world_size && status == BARACUDA_OK; ++step) {
    status = hop(endpoint, slots, bytes, step);
  }
  return status;
}

int32_t fetch_slots(const baracuda_ring_endpoint& endpoint, const char* slots, int64_t bytes,
                    void* all) {
  const baracuda_stream_ops& ops = *endpoint.ops;
  void* const stream = endpoint.ring_stream;
  expect_record();
  const int32_t status =
      with_record(ops.copy(all, slots, endpoint.transport.world_size * bytes, stream), "copy");
  if (status != BARACUDA_OK) return status;
  return with_record(ops.stream_synchronize(stream), "stream_synchronize");
}

}  // namespace baracuda

extern "C" int32_t baracuda_ring_all_gather(baracuda_ring_endpoint* endpoint, const void* mine,
                                            int64_t bytes, void* all) {
  int32_t status = baracuda::check_all_gather(endpoint, mine, bytes, all);
  if (status == BARACUDA_OK) status = baracuda::all_gather(*endpoint, mine, bytes, all);
  return status == BARACUDA_OK ? status : baracuda::end_ring(endpoint, status);
}
