// Host time of C calls without Python around them: bare launches, and the ring's loop over streams
// and a transport that do nothing, so that only the loop's own time is measured.
#include <chrono>
#include <vector>

#include "attention/forward/ring_step.h"
#include "baracuda/attention_ring.h"
#include "baracuda/status.h"

namespace {

using Clock = std::chrono::steady_clock;

int32_t nothing(void*) { return BARACUDA_OK; }
int32_t nothing_of_two(void*, void*) { return BARACUDA_OK; }
int32_t message(void*, const void*, int64_t, int32_t, void*) { return BARACUDA_OK; }
int32_t receive(void*, void*, int64_t, int32_t, void*) { return BARACUDA_OK; }

const baracuda_attention_ring_problem& as_problem(const void* problem) {
  return *static_cast<const baracuda_attention_ring_problem*>(problem);
}
int32_t is_live(const void* problem, const baracuda_ring_step* at) {
  return baracuda::ForwardRingStep(as_problem(problem), *at).launches();
}
int32_t launch(const void* problem, const baracuda_ring_step* at) {
  const auto params = baracuda::ForwardRingStep(as_problem(problem), *at).params();
  return params.key_len > 0 ? BARACUDA_OK : BARACUDA_INVALID_ARGUMENT;
}

baracuda_stream_ops idle_ops() {
  baracuda_stream_ops ops{};
  ops.struct_size = sizeof(ops);
  ops.record = nothing_of_two;
  ops.wait = nothing_of_two;
  return ops;
}

double microseconds(Clock::time_point start, int calls) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / calls;
}

}  // namespace

extern "C" {

// Microseconds of a call of step, or -1 if one fails.
double time_launches(int32_t (*step)(int32_t, const baracuda_attention_step_params*, void*),
                     const baracuda_attention_step_params* params, int32_t kernel, void* stream,
                     int calls) {
  int32_t failed = BARACUDA_OK;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < calls; ++i) failed |= step(kernel, params, stream);
  return failed == BARACUDA_OK ? microseconds(start, calls) : -1;
}

// Microseconds of one step of one rank's run of `ranks` steps, causal and striped: every step is
// live, and every position map is computed.
double time_loop(int32_t (*run)(baracuda_ring_call*, int32_t),
                 void (*schedule)(int32_t, int32_t, baracuda_ring_hop*),
                 const baracuda_ring_exchange* (*exchange)(), int32_t ranks, int calls) {
  const baracuda_stream_ops ops = idle_ops();
  std::vector<baracuda_ring_hop> hops(static_cast<size_t>(ranks));
  schedule(ranks / 2, ranks, hops.data());
  baracuda_ring_endpoint endpoint{};
  endpoint.struct_size = sizeof(endpoint);
  endpoint.transport = {sizeof(baracuda_transport), nullptr, ranks / 2, ranks, nothing,
                        message,                    receive, nothing};
  endpoint.ops = &ops;
  endpoint.exchange = exchange();
  endpoint.device = -1;
  const baracuda_ring_program program = {
      sizeof(program), 1, 0, nullptr, is_live, nullptr, launch, nullptr};
  baracuda_attention_ring_problem problem{};
  problem.struct_size = sizeof(problem);
  problem.layout = BARACUDA_STRIPED;
  problem.step.struct_size = sizeof(problem.step);
  problem.step.flags = BARACUDA_STEP_CAUSAL;
  problem.step.batch = problem.step.heads = problem.step.kv_heads = 1;
  problem.step.query_len = problem.step.key_len = 1024;
  problem.step.head_dim = 64;
  char buffer[4] = {};
  baracuda_ring_payload payload{};
  payload.timing = BARACUDA_RING_BESIDE;
  payload.pieces = 2;
  payload.piece_bytes[0] = payload.piece_bytes[1] = 1;
  payload.own[0] = payload.own[1] = payload.buffers[0] = payload.buffers[1] = buffer;
  baracuda_ring_call call{};
  call.struct_size = sizeof(call);
  call.endpoint = &endpoint;
  call.hops = hops.data();
  call.program = &program;
  call.problem = &problem;
  call.payloads = &payload;
  call.payload_count = 1;
  int32_t failed = BARACUDA_OK;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < calls; ++i) failed |= run(&call, 1);
  return failed == BARACUDA_OK ? microseconds(start, calls) / ranks : -1;
}

}  // extern "C"
