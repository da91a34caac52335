#include "ring/check_calls.h"

#include <cstdint>

#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"
#include "ring/check_endpoint.h"
#include "ring/rounds.h"

namespace baracuda {
namespace {

constexpr const char* kCall = "baracuda_ring_run";

template <typename... Args>
int32_t invalid(const char* message, Args... args) {
  return fail(BARACUDA_INVALID_ARGUMENT, kCall, message, args...);
}

// The first i below count whose rank_of(i) an earlier one has; -1: none. Each is a rank of
// world_size. Looks at 64 ranks at a time, because a run must not allocate.
template <typename F>
int32_t find_repeat(int32_t count, int32_t world_size, F rank_of) {
  for (int64_t from = 0; from < world_size; from += 64) {
    uint64_t seen = 0;
    for (int32_t i = 0; i < count; ++i) {
      const int64_t place = rank_of(i) - from;
      if (place < 0 || place >= 64) continue;
      const uint64_t bit = uint64_t{1} << place;
      if ((seen & bit) != 0) return i;
      seen |= bit;
    }
  }
  return -1;
}

// True for the origins of baracuda_ring_schedule(), which are every rank once. find_repeat() would
// take long for the many ranks of a large local ring.
bool has_plain_origins(const baracuda_ring_hop* hops, const baracuda_transport& transport) {
  int32_t origin = transport.rank;
  for (int32_t step = 0; step < transport.world_size; ++step) {
    if (hops[step].origin != origin) return false;
    origin = origin == 0 ? transport.world_size - 1 : origin - 1;
  }
  return true;
}

// True if something travels along the hop of this step. brings_home: a sum is sent home after the
// last step.
bool travels(int32_t step, int32_t world_size, bool brings_home) {
  return step + 1 < world_size || (brings_home && world_size > 1);
}

int32_t check_hops(const baracuda_ring_hop* hops, const baracuda_transport& transport,
                   bool brings_home) {
  if (hops == nullptr) return invalid("%s", "hops: got NULL, must be given");
  const int32_t world_size = transport.world_size;
  const auto is_rank = [world_size](int32_t rank) { return rank >= 0 && rank < world_size; };
  for (int32_t step = 0; step < world_size; ++step) {
    const baracuda_ring_hop& hop = hops[step];
    const bool has_ends = is_rank(hop.send_to) && is_rank(hop.recv_from);
    if (!is_rank(hop.origin) || (travels(step, world_size, brings_home) && !has_ends)) {
      return invalid("hops[%d]: got origin %d, send_to %d, recv_from %d, must be in [0, %d)", step,
                     hop.origin, hop.send_to, hop.recv_from, world_size);
    }
  }
  if (hops[0].origin != transport.rank) {
    return invalid("hops[0].origin: got %d, must be %d, the rank itself", hops[0].origin,
                   transport.rank);
  }
  if (has_plain_origins(hops, transport)) return BARACUDA_OK;
  const int32_t step =
      find_repeat(world_size, world_size, [hops](int32_t i) { return hops[i].origin; });
  if (step >= 0) {
    return invalid("hops[%d].origin: got %d a second time, must be every rank once", step,
                   hops[step].origin);
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

// Checks the functions that the loop and the exchange by send and receive call without a test for
// NULL.
int32_t check_run_ops(const baracuda_stream_ops& ops, bool has_behind) {
  return check_functions(kCall, "endpoint->ops->",
                         {{"record", ops.record != nullptr},
                          {"wait", ops.wait != nullptr},
                          {"clear", !has_behind || ops.clear != nullptr},
                          {"multiprocessors", ops.pause == nullptr || ops.multiprocessors}});
}

int32_t check_call(const baracuda_ring_call& call) {
  const baracuda_transport& transport = call.endpoint->transport;
  int32_t status = check_payloads(call, transport.world_size);
  if (status == BARACUDA_OK) status = check_run_ops(*call.endpoint->ops, has_behind(call));
  if (status == BARACUDA_OK) status = check_hops(call.hops, transport, has_behind(call));
  if (status == BARACUDA_OK && call.program->check != nullptr) {
    baracuda_ring_step at{};
    at.rank = transport.rank;
    at.world_size = transport.world_size;
    status = call.program->check(call.problem, &at);
  }
  if (status != BARACUDA_OK) locate_failure(transport.rank, -1);
  return status;
}

int32_t rank_of(const baracuda_ring_call& call) { return call.endpoint->transport.rank; }

// A rank's call, or NULL if this thread does not drive the rank.
const baracuda_ring_call* find_call(const baracuda_ring_call* calls, int32_t count, int32_t rank) {
  if (rank < count && rank_of(calls[rank]) == rank) return &calls[rank];  // as a rule
  for (int32_t i = 0; i < count; ++i) {
    if (rank_of(calls[i]) == rank) return &calls[i];
  }
  return nullptr;
}

// One end of a hop, and its name.
struct HopEnd {
  int32_t baracuda_ring_hop::*rank;
  const char* name;
};

// If this thread drives both ranks of a hop, each must name the other.
int32_t check_ends(const baracuda_ring_call* calls, int32_t count, HopEnd near, HopEnd far) {
  const int32_t world_size = calls[0].endpoint->transport.world_size;
  const bool brings_home = has_behind(calls[0]);
  for (int32_t i = 0; i < count; ++i) {
    for (int32_t step = 0; step < world_size && travels(step, world_size, brings_home); ++step) {
      const int32_t to = calls[i].hops[step].*near.rank;
      const baracuda_ring_call* const other = find_call(calls, count, to);
      const int32_t back = other == nullptr ? rank_of(calls[i]) : other->hops[step].*far.rank;
      if (back == rank_of(calls[i])) continue;
      return invalid("calls[%d].hops[%d].%s: got %d, whose %s is %d, must be the rank whose %s is "
                     "%d",
                     i, step, near.name, to, far.name, back, far.name, rank_of(calls[i]));
    }
  }
  return BARACUDA_OK;
}

// Checks what the calls are to each other.
int32_t check_ranks(const baracuda_ring_call* calls, int32_t count) {
  const int32_t world_size = calls[0].endpoint->transport.world_size;
  const int32_t i =
      find_repeat(count, world_size, [calls](int32_t at) { return rank_of(calls[at]); });
  if (i >= 0) {
    return invalid("calls[%d]: got rank %d, which another call has, must be one call a rank", i,
                   rank_of(calls[i]));
  }
  const HopEnd send_to = {&baracuda_ring_hop::send_to, "send_to"};
  const HopEnd recv_from = {&baracuda_ring_hop::recv_from, "recv_from"};
  const int32_t status = check_ends(calls, count, send_to, recv_from);
  return status == BARACUDA_OK ? check_ends(calls, count, recv_from, send_to) : status;
}

}  // namespace

int32_t check_calls(const baracuda_ring_call* calls, int32_t count) {
  if (count < 1) return invalid("count: got %d, must be at least 1", count);
  if (calls == nullptr) return invalid("%s", "calls: got NULL, must be given");
  for (int32_t i = 0; i < count; ++i) {
    const baracuda_ring_call& call = calls[i];
    int32_t status = check_struct(kCall, "call", &call);
    if (status == BARACUDA_OK) status = check_endpoint(kCall, call.endpoint);
    if (status == BARACUDA_OK) status = check_exchange(kCall, call.endpoint->exchange);
    if (status == BARACUDA_OK) status = check_call(call);
    if (status != BARACUDA_OK) return status;
    const int32_t world_size = call.endpoint->transport.world_size;
    if (count > world_size) {
      return invalid("count: got %d, must be at most %d, the world_size of calls[%d]", count,
                     world_size, i);
    }
    if (!same_shape(call, calls[0])) {
      return invalid("calls[%d]: got another world_size, program or payloads, must be those of "
                     "calls[0]",
                     i);
    }
  }
  return check_ranks(calls, count);
}

}  // namespace baracuda
