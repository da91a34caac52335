// Opening and closing an endpoint (a rank's transport, ring stream and events, see exchange.h), and
// the warm-up messages.
#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "common/error.h"
#include "ring/check_endpoint.h"
#include "ring/device_scope.h"

namespace {

using baracuda::with_record;

constexpr int64_t kWarmUpBytes = 64;

int32_t create_all(baracuda_ring_endpoint& endpoint) {
  const baracuda_stream_ops& ops = *endpoint.ops;
  const auto create_event = [&ops](void** event) {
    return with_record(ops.event_create(event), "event_create");
  };
  int32_t status = with_record(ops.stream_create(&endpoint.ring_stream, 1), "stream_create");
  if (status == BARACUDA_OK) status = create_event(&endpoint.compute_done);
  for (void*& event : endpoint.exchange_done) {
    if (status == BARACUDA_OK) status = create_event(&event);
  }
  if (status == BARACUDA_OK && ops.pause_load != nullptr) {
    status = with_record(ops.pause_load(), "pause_load");
  }
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

int32_t check_open(const baracuda_ring_endpoint* endpoint) {
  constexpr const char* call = "baracuda_ring_endpoint_open";
  int32_t status = baracuda::check_ops(call, endpoint);
  if (status != BARACUDA_OK) return status;
  const baracuda_stream_ops& ops = *endpoint->ops;
  status = baracuda::check_functions(call, "endpoint->ops->",
                                     {{"event_create", ops.event_create != nullptr},
                                      {"event_destroy", ops.event_destroy != nullptr},
                                      {"stream_create", ops.stream_create != nullptr},
                                      {"stream_destroy", ops.stream_destroy != nullptr}});
  if (status != BARACUDA_OK || endpoint->exchange == nullptr) return status;
  return baracuda::check_exchange(call, endpoint->exchange);
}

int32_t check_warm_up(const baracuda_ring_endpoint* endpoint, const void* buffer) {
  constexpr const char* call = "baracuda_ring_warm_up";
  int32_t status = baracuda::check_endpoint(call, endpoint);
  // A rank alone sends to itself.
  if (status == BARACUDA_OK) status = baracuda::check_messages(call, endpoint->transport);
  if (status != BARACUDA_OK || buffer != nullptr) return status;
  return baracuda::fail(BARACUDA_INVALID_ARGUMENT, call, "buffer: got NULL, must be given");
}

// What a function of the transport returned.
int32_t returned(int32_t status, const char* call) {
  return with_record(status, call, BARACUDA_TRANSPORT_ERROR);
}

int32_t exchange_warm_up(const baracuda_ring_endpoint& endpoint, char* bytes) {
  const baracuda_transport& transport = endpoint.transport;
  const int32_t p = transport.world_size;
  const int32_t next = (transport.rank + 1) % p;
  const int32_t previous = (transport.rank + p - 1) % p;
  const int32_t peers[3] = {transport.rank, next, previous};
  // A transport matches the messages between two ranks by their order. With two ranks, next and
  // previous are the same peer, so send i of one rank is received by receive i of the other. Send 1
  // goes to the next rank, so receive 1 must be from the previous one.
  const int32_t senders[3] = {transport.rank, previous, next};

  baracuda::expect_record();
  int32_t status = returned(transport.group_start(transport.context), "group_start");
  if (status != BARACUDA_OK) return status;
  for (int32_t i = 0; i < 3 && status == BARACUDA_OK; ++i) {
    status = returned(transport.send(transport.context, bytes + i * kWarmUpBytes, kWarmUpBytes,
                                     peers[i], endpoint.ring_stream),
                      "send");
  }
  for (int32_t i = 0; i < 3 && status == BARACUDA_OK; ++i) {
    status = returned(transport.recv(transport.context, bytes + (3 + i) * kWarmUpBytes,
                                     kWarmUpBytes, senders[i], endpoint.ring_stream),
                      "recv");
  }
  if (status == BARACUDA_OK) return returned(transport.group_end(transport.context), "group_end");
  // The group is closed after a failure, too. group_end may overwrite the error record.
  const baracuda_error failure = *baracuda_last_error();
  transport.group_end(transport.context);
  return baracuda::restore_failure(failure);
}

}  // namespace

extern "C" {

int32_t baracuda_ring_endpoint_open(baracuda_ring_endpoint* endpoint) {
  int32_t status = check_open(endpoint);
  if (status != BARACUDA_OK) return status;
  endpoint->ring_stream = nullptr;
  endpoint->compute_done = nullptr;
  for (void*& event : endpoint->exchange_done) event = nullptr;
  if (endpoint->exchange == nullptr) endpoint->exchange = baracuda_send_recv_exchange();
  endpoint->steps_enqueued = 0;
  baracuda::expect_record();
  baracuda::DeviceScope device;
  status = with_record(device.enter(*endpoint->ops, endpoint->device), "set_device");
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
  const int32_t status = check_warm_up(endpoint, buffer);
  if (status != BARACUDA_OK) return baracuda::end_ring(endpoint, status);
  return exchange_warm_up(*endpoint, static_cast<char*>(buffer));
}

}  // extern "C"
