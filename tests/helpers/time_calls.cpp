// Host time of C calls without Python around them: bare launches, and the ring's loop over streams
// and a transport that do nothing, so that what is left is the loop's own.
#include <chrono>
#include <vector>

#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace {

using Clock = std::chrono::steady_clock;

int32_t nothing(void*) { return BARACUDA_OK; }
int32_t nothing_of_two(void*, void*) { return BARACUDA_OK; }
int32_t message(void*, const void*, int64_t, int32_t, void*) { return BARACUDA_OK; }
int32_t receive(void*, void*, int64_t, int32_t, void*) { return BARACUDA_OK; }
int32_t launch(int32_t, const baracuda_attention_step_params*, void*) { return BARACUDA_OK; }

baracuda_stream_ops idle_ops() {
  baracuda_stream_ops ops{};
  ops.struct_size = sizeof(ops);
  ops.record = nothing_of_two;
  ops.wait = nothing_of_two;
  ops.launch = launch;
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
                 void (*schedule)(int32_t, int32_t, baracuda_ring_hop*), int32_t ranks, int calls) {
  const baracuda_stream_ops ops = idle_ops();
  std::vector<baracuda_ring_hop> hops(static_cast<size_t>(ranks));
  schedule(ranks / 2, ranks, hops.data());
  baracuda_ring_endpoint endpoint{};
  endpoint.struct_size = sizeof(endpoint);
  endpoint.transport = {sizeof(baracuda_transport), nullptr, ranks / 2, ranks, nothing,
                        message,                    receive, nothing};
  endpoint.ops = &ops;
  endpoint.device = -1;
  baracuda_ring_call call{};
  call.struct_size = sizeof(call);
  call.endpoint = &endpoint;
  call.layout = BARACUDA_STRIPED;
  call.hops = hops.data();
  call.step.struct_size = sizeof(call.step);
  call.step.flags = BARACUDA_STEP_CAUSAL;
  call.step.batch = call.step.heads = call.step.kv_heads = 1;
  call.step.query_len = call.step.key_len = 1024;
  call.step.head_dim = 64;
  char buffer[4] = {};
  call.step.k = call.step.v = buffer;
  call.receive[0] = call.receive[1] = buffer;
  call.message_bytes = 1;
  int32_t failed = BARACUDA_OK;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < calls; ++i) failed |= run(&call, 1);
  return failed == BARACUDA_OK ? microseconds(start, calls) / ranks : -1;
}

}  // extern "C"
