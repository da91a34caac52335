// Opening and closing an endpoint (a rank's transport, ring stream and events, see exchange.h), and
// the warm-up messages.
#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"
#include "ring/device_scope.h"

namespace {

using baracuda::check_struct;

constexpr int64_t kWarmUpBytes = 64;

int32_t create_all(baracuda_ring_endpoint& endpoint) {
  const baracuda_stream_ops& ops = *endpoint.ops;
  int32_t status = ops.stream_create(&endpoint.ring_stream, 1);
  if (status == BARACUDA_OK) status = ops.event_create(&endpoint.compute_done);
  for (void*& event : endpoint.exchange_done) {
    if (status == BARACUDA_OK) status = ops.event_create(&event);
  }
  if (status == BARACUDA_OK && ops.pause_load != nullptr) status = ops.pause_load();
  return status;
}

int32_t destroy_all(baracuda_ring_endpoint& endpoint) {
  const baracuda_stream_ops& ops = *endpoint.ops;
  int32_t first = BARACUDA_OK;
  const auto keep = [&first](int32_t status) {
    if (first == BARACUDA_OK) first = status;
  };
  for (void*& event : endpoint.exchange_done) {
    if (event != nullptr) keep(ops.event_destroy(event));
    event = nullptr;
  }
  if (endpoint.compute_done != nullptr) keep(ops.event_destroy(endpoint.compute_done));
  endpoint.compute_done = nullptr;
  if (endpoint.ring_stream != nullptr) keep(ops.stream_destroy(endpoint.ring_stream));
  endpoint.ring_stream = nullptr;
  return first;
}

}  // namespace

extern "C" {

int32_t baracuda_ring_endpoint_open(baracuda_ring_endpoint* endpoint) {
  constexpr const char* call = "baracuda_ring_endpoint_open";
  int32_t status = check_struct(call, "endpoint", endpoint);
  if (status == BARACUDA_OK) status = check_struct(call, "endpoint->ops", endpoint->ops);
  if (status != BARACUDA_OK) return status;
  endpoint->ring_stream = nullptr;
  endpoint->compute_done = nullptr;
  for (void*& event : endpoint->exchange_done) event = nullptr;
  if (endpoint->exchange == nullptr) endpoint->exchange = baracuda_send_recv_exchange();
  endpoint->steps_enqueued = 0;
  baracuda::DeviceScope device;
  status = device.enter(*endpoint->ops, endpoint->device);
  if (status == BARACUDA_OK) status = create_all(*endpoint);
  if (status != BARACUDA_OK) {
    const baracuda_error failure = *baracuda_last_error();
    destroy_all(*endpoint);
    baracuda::restore_failure(failure);
  }
  return status;
}

int32_t baracuda_ring_endpoint_close(baracuda_ring_endpoint* endpoint) {
  if (endpoint == nullptr || endpoint->ops == nullptr) return BARACUDA_OK;
  return destroy_all(*endpoint);
}

int32_t baracuda_ring_warm_up(baracuda_ring_endpoint* endpoint, void* buffer) {
  const baracuda_transport& transport = endpoint->transport;
  const int32_t p = transport.world_size;
  const int32_t next = (transport.rank + 1) % p;
  const int32_t previous = (transport.rank + p - 1) % p;
  const int32_t peers[3] = {transport.rank, next, previous};
  // A transport matches the messages between two ranks by their order. With two ranks, next and
  // previous are the same peer, so send i of one rank is received by receive i of the other. Send 1
  // goes to the next rank, so receive 1 must be from the previous one.
  const int32_t senders[3] = {transport.rank, previous, next};
  char* bytes = static_cast<char*>(buffer);

  int32_t status = transport.group_start(transport.context);
  if (status != BARACUDA_OK) return status;
  for (int32_t i = 0; i < 3 && status == BARACUDA_OK; ++i) {
    status = transport.send(transport.context, bytes + i * kWarmUpBytes, kWarmUpBytes, peers[i],
                            endpoint->ring_stream);
  }
  for (int32_t i = 0; i < 3 && status == BARACUDA_OK; ++i) {
    status = transport.recv(transport.context, bytes + (3 + i) * kWarmUpBytes, kWarmUpBytes,
                            senders[i], endpoint->ring_stream);
  }
  if (status == BARACUDA_OK) return transport.group_end(transport.context);
  // The group is closed after a failure, too. group_end may overwrite the error record.
  const baracuda_error failure = *baracuda_last_error();
  transport.group_end(transport.context);
  baracuda::restore_failure(failure);
  return status;
}

}  // extern "C"
