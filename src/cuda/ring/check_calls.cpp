#include "ring/check_calls.h"

#include <cstdint>

#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"
#include "ring/rounds.h"

namespace baracuda {
namespace {

constexpr const char* kCall = "baracuda_ring_run";

template <typename... Args>
int32_t invalid(const char* message, Args... args) {
  return fail(BARACUDA_INVALID_ARGUMENT, kCall, message, args...);
}

int32_t check_endpoint(const baracuda_ring_endpoint* endpoint) {
  int32_t status = check_struct(kCall, "endpoint", endpoint);
  if (status == BARACUDA_OK) status = check_struct(kCall, "endpoint->ops", endpoint->ops);
  if (status == BARACUDA_OK) status = check_struct(kCall, "endpoint->exchange", endpoint->exchange);
  if (status == BARACUDA_OK) status = check_struct(kCall, "transport", &endpoint->transport);
  if (status != BARACUDA_OK) return status;
  const baracuda_transport& transport = endpoint->transport;
  if (transport.world_size < 1) {
    return invalid("transport.world_size: got %d, must be at least 1", transport.world_size);
  }
  if (transport.rank < 0 || transport.rank >= transport.world_size) {
    return invalid("transport.rank: got %d, must be in [0, %d)", transport.rank,
                   transport.world_size);
  }
  const bool complete =
      transport.group_start && transport.send && transport.recv && transport.group_end;
  if (transport.world_size > 1 && !complete) {
    return invalid("%s", "transport: got a NULL function, must have all four");
  }
  return BARACUDA_OK;
}

// brings_home: a sum is sent home after the last step.
int32_t check_hops(const baracuda_ring_hop* hops, int32_t world_size, bool brings_home) {
  if (hops == nullptr) return invalid("%s", "hops: got NULL, must be given");
  const auto is_rank = [world_size](int32_t rank) { return rank >= 0 && rank < world_size; };
  for (int32_t step = 0; step < world_size; ++step) {
    const baracuda_ring_hop& hop = hops[step];
    const bool travels = step + 1 < world_size || (brings_home && world_size > 1);
    if (!is_rank(hop.origin) || (travels && !(is_rank(hop.send_to) && is_rank(hop.recv_from)))) {
      return invalid("hops[%d]: got origin %d, send_to %d, recv_from %d, must be in [0, %d)", step,
                     hop.origin, hop.send_to, hop.recv_from, world_size);
    }
  }
  return BARACUDA_OK;
}

int32_t check_program(const baracuda_ring_program* program, bool has_behind) {
  const int32_t status = check_struct(kCall, "program", program);
  if (status != BARACUDA_OK) return status;
  if (program->parts < 1 || program->parts > BARACUDA_RING_MAX_PARTS) {
    return invalid("program->parts: got %d, must be 1 to %d", program->parts,
                   BARACUDA_RING_MAX_PARTS);
  }
  if (program->is_live == nullptr || program->launch == nullptr) {
    return invalid("%s", "program->is_live, launch: got NULL, must be given");
  }
  if (has_behind && program->add == nullptr) {
    return invalid("%s", "program->add: got NULL, must be given for a payload that travels BEHIND");
  }
  return BARACUDA_OK;
}

int32_t check_payload(const baracuda_ring_call& call, int32_t i, int32_t world_size) {
  const baracuda_ring_payload& payload = call.payloads[i];
  const int32_t parts = call.program->parts;
  if (payload.timing != BARACUDA_RING_BESIDE && payload.timing != BARACUDA_RING_BEHIND) {
    return invalid("payloads[%d].timing: got %d, must be a baracuda_ring_timing", i,
                   payload.timing);
  }
  if (payload.part < 0 || payload.part >= parts) {
    return invalid("payloads[%d].part: got %d, must be in [0, %d)", i, payload.part, parts);
  }
  if (payload.pieces < 1 || payload.pieces > BARACUDA_RING_MAX_PIECES) {
    return invalid("payloads[%d].pieces: got %d, must be 1 to %d", i, payload.pieces,
                   BARACUDA_RING_MAX_PIECES);
  }
  constexpr int64_t most_bytes = INT64_MAX / 8;
  for (int32_t j = 0; j < payload.pieces; ++j) {
    const int64_t bytes = payload.piece_bytes[j];
    if (bytes < 0 || bytes > most_bytes) {
      return invalid("payloads[%d].piece_bytes[%d]: got %lld, must be in [0, %lld]", i, j,
                     static_cast<long long>(bytes), static_cast<long long>(most_bytes));
    }
    const bool is_used = Rounds::is_behind(payload) || world_size > 1;
    if (bytes > 0 && is_used && payload.own[j] == nullptr) {
      return invalid("payloads[%d].own[%d]: got NULL, must be given", i, j);
    }
  }
  if (chunk_bytes(payload) == 0) return BARACUDA_OK;
  // BESIDE: buffers[1] receives the chunk of step 1, and buffers[0] the chunk of step 2. BEHIND:
  // buffers[1] holds the sum that step 1 starts. buffers[0] receives the sum that step 2 adds to,
  // or, with two ranks, the sum that comes home. From step 2 on, buffers[2] holds a share until it
  // is added, unless the launch itself adds it.
  const bool behind = Rounds::is_behind(payload);
  const bool needed[3] = {world_size > (behind ? 1 : 2), world_size > 1,
                          behind && world_size > 2 && call.program->launch_adds == 0};
  for (int32_t j = 0; j < 3; ++j) {
    if (needed[j] && payload.buffers[j] == nullptr) {
      return invalid("payloads[%d].buffers[%d]: got NULL, must be given at world_size %d", i, j,
                     world_size);
    }
  }
  return BARACUDA_OK;
}

bool has_behind(const baracuda_ring_call& call) {
  for (int32_t i = 0; i < call.payload_count; ++i) {
    if (Rounds::is_behind(call.payloads[i])) return true;
  }
  return false;
}

int32_t check_payloads(const baracuda_ring_call& call, int32_t world_size) {
  if (call.payload_count < 0 || call.payload_count > BARACUDA_RING_MAX_PAYLOADS) {
    return invalid("payload_count: got %d, must be 0 to %d", call.payload_count,
                   BARACUDA_RING_MAX_PAYLOADS);
  }
  if (call.payload_count > 0 && call.payloads == nullptr) {
    return invalid("payloads: got NULL, must be given for a payload_count of %d",
                   call.payload_count);
  }
  int32_t status = check_program(call.program, has_behind(call));
  int32_t messages = 0;
  for (int32_t i = 0; i < call.payload_count && status == BARACUDA_OK; ++i) {
    status = check_payload(call, i, world_size);
    messages += Rounds::is_behind(call.payloads[i]) ? 1 : call.payloads[i].pieces;
  }
  if (status == BARACUDA_OK && messages > BARACUDA_RING_MAX_MESSAGES) {
    return invalid("payloads: got %d messages in one round, must be at most %d", messages,
                   BARACUDA_RING_MAX_MESSAGES);
  }
  return status;
}

// Ranks that one thread drives go through the loop together, so their calls must have one shape.
bool same_shape(const baracuda_ring_call& a, const baracuda_ring_call& b) {
  if (a.endpoint->transport.world_size != b.endpoint->transport.world_size ||
      a.program->parts != b.program->parts ||
      a.program->launch_adds != b.program->launch_adds || a.payload_count != b.payload_count) {
    return false;
  }
  for (int32_t i = 0; i < a.payload_count; ++i) {
    const baracuda_ring_payload& p = a.payloads[i];
    const baracuda_ring_payload& q = b.payloads[i];
    if (p.timing != q.timing || p.part != q.part || p.pieces != q.pieces) return false;
    for (int32_t j = 0; j < p.pieces; ++j) {
      if (p.piece_bytes[j] != q.piece_bytes[j]) return false;
    }
  }
  return true;
}

int32_t check_call(const baracuda_ring_call& call) {
  const baracuda_transport& transport = call.endpoint->transport;
  int32_t status = check_payloads(call, transport.world_size);
  if (status == BARACUDA_OK) {
    status = check_hops(call.hops, transport.world_size, has_behind(call));
  }
  if (status == BARACUDA_OK && call.program->check != nullptr) {
    baracuda_ring_step at{};
    at.rank = transport.rank;
    at.world_size = transport.world_size;
    status = call.program->check(call.problem, &at);
  }
  if (status != BARACUDA_OK) locate_failure(transport.rank, -1);
  return status;
}

}  // namespace

int32_t check_calls(const baracuda_ring_call* calls, int32_t count) {
  if (count < 1) return invalid("count: got %d, must be at least 1", count);
  if (calls == nullptr) return invalid("%s", "calls: got NULL, must be given");
  for (int32_t i = 0; i < count; ++i) {
    const baracuda_ring_call& call = calls[i];
    int32_t status = check_struct(kCall, "call", &call);
    if (status == BARACUDA_OK) status = check_endpoint(call.endpoint);
    if (status == BARACUDA_OK) status = check_call(call);
    if (status != BARACUDA_OK) return status;
    if (!same_shape(call, calls[0])) {
      return invalid("calls[%d]: got another world_size, program or payloads, must be those of "
                     "calls[0]",
                     i);
    }
  }
  return BARACUDA_OK;
}

}  // namespace baracuda
