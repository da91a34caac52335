#include "ring/check_calls.h"

#include <cstdint>

#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace {

constexpr const char* kCall = "baracuda_ring_run";

template <typename... Args>
int32_t invalid(const char* message, Args... args) {
  return fail(BARACUDA_INVALID_ARGUMENT, kCall, message, args...);
}

int32_t check_endpoint(const baracuda_ring_endpoint* endpoint) {
  if (endpoint == nullptr) return invalid("%s", "endpoint: must not be NULL");
  if (endpoint->struct_size != sizeof(baracuda_ring_endpoint)) {
    return invalid("endpoint: struct_size must be %zu", sizeof(baracuda_ring_endpoint));
  }
  if (endpoint->ops == nullptr || endpoint->ops->struct_size != sizeof(baracuda_stream_ops)) {
    return invalid("endpoint->ops: struct_size must be %zu", sizeof(baracuda_stream_ops));
  }
  const baracuda_transport& transport = endpoint->transport;
  if (transport.struct_size != sizeof(baracuda_transport)) {
    return invalid("transport: struct_size must be %zu", sizeof(baracuda_transport));
  }
  if (transport.world_size < 1 || transport.rank < 0 || transport.rank >= transport.world_size) {
    return invalid("transport: rank %d of world_size %d", transport.rank, transport.world_size);
  }
  const bool complete =
      transport.group_start && transport.send && transport.recv && transport.group_end;
  if (transport.world_size > 1 && !complete) {
    return invalid("%s", "transport: all four functions must be set");
  }
  return BARACUDA_OK;
}

int32_t check_hops(const baracuda_ring_hop* hops, int32_t world_size) {
  if (hops == nullptr) return invalid("%s", "hops: must not be NULL");
  const auto is_rank = [world_size](int32_t rank) { return rank >= 0 && rank < world_size; };
  for (int32_t step = 0; step < world_size; ++step) {
    const baracuda_ring_hop& hop = hops[step];
    const bool exchanges = step + 1 < world_size;
    if (!is_rank(hop.origin) || (exchanges && !(is_rank(hop.send_to) && is_rank(hop.recv_from)))) {
      return invalid("hops[%d]: origin %d, send_to %d, recv_from %d; must be in [0, %d)", step,
                     hop.origin, hop.send_to, hop.recv_from, world_size);
    }
  }
  return BARACUDA_OK;
}

int32_t check_shapes(const baracuda_ring_call& call, int32_t world_size) {
  const baracuda_attention_step_params& step = call.step;
  if (step.struct_size != sizeof(baracuda_attention_step_params)) {
    return invalid("step: struct_size must be %zu", sizeof(baracuda_attention_step_params));
  }
  if (step.batch < 0 || step.heads < 0 || step.query_len < 0 || step.key_len < 0) {
    return invalid("step: batch, heads, query_len and key_len must not be negative, got %lld, "
                   "%lld, %lld, %lld",
                   static_cast<long long>(step.batch), static_cast<long long>(step.heads),
                   static_cast<long long>(step.query_len), static_cast<long long>(step.key_len));
  }
  const int64_t longest = INT64_MAX / 4 / world_size;
  if (step.query_len > longest || step.key_len > longest) {
    return invalid("step: query_len and key_len must be at most %lld at world_size %d",
                   static_cast<long long>(longest), world_size);
  }
  if (step.device_maps != nullptr) {
    return invalid("%s", "step.device_maps: must be NULL, the ring knows its ranks");
  }
  if (call.layout < BARACUDA_CONTIGUOUS || call.layout > BARACUDA_STRIPED) {
    return invalid("layout: %d is not a baracuda_sequence_layout", call.layout);
  }
  return BARACUDA_OK;
}

int32_t check_buffers(const baracuda_ring_call& call, int32_t world_size) {
  constexpr int64_t most_bytes = INT64_MAX / 2;  // K and V of a received chunk are one message
  if (call.message_bytes < 0 || call.message_bytes > most_bytes) {
    return invalid("message_bytes: must be in [0, %lld], got %lld",
                   static_cast<long long>(most_bytes), static_cast<long long>(call.message_bytes));
  }
  if (call.message_bytes == 0 || world_size == 1) return BARACUDA_OK;
  if (call.step.k == nullptr || call.step.v == nullptr) {
    return invalid("%s", "step.k, step.v: must not be NULL");
  }
  if (call.receive[1] == nullptr || (world_size > 2 && call.receive[0] == nullptr)) {
    return invalid("receive[%d]: must not be NULL at world_size %d",
                   call.receive[1] == nullptr ? 1 : 0, world_size);
  }
  return BARACUDA_OK;
}

}  // namespace

int32_t check_calls(const baracuda_ring_call* calls, int32_t count) {
  if (calls == nullptr || count < 1) return invalid("calls, count: got %d calls", count);
  for (int32_t i = 0; i < count; ++i) {
    const baracuda_ring_call& call = calls[i];
    if (call.struct_size != sizeof(baracuda_ring_call)) {
      return invalid("calls[%d]: struct_size must be %zu", i, sizeof(baracuda_ring_call));
    }
    int32_t status = check_endpoint(call.endpoint);
    if (status != BARACUDA_OK) return status;
    const int32_t world_size = call.endpoint->transport.world_size;
    status = check_hops(call.hops, world_size);
    if (status == BARACUDA_OK) status = check_shapes(call, world_size);
    if (status == BARACUDA_OK) status = check_buffers(call, world_size);
    if (status != BARACUDA_OK) {
      locate_failure(call.endpoint->transport.rank, -1);
      return status;
    }
    if (world_size != calls[0].endpoint->transport.world_size ||
        call.message_bytes != calls[0].message_bytes) {
      return invalid("calls[%d]: world_size %d and message_bytes %lld differ from calls[0]'s", i,
                     world_size, static_cast<long long>(call.message_bytes));
    }
  }
  return BARACUDA_OK;
}

}  // namespace baracuda
