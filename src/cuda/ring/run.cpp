// The ring loop: the only one, for NCCL, local and host rings and any schedule of hops.
//
//   ring stream      exchange(0) ───────── exchange(1) ───────── …
//                       ▲      └────────┐   ▲      └───────┐
//   caller's stream  (start)  kernel(0) ┴───┴─ kernel(1) ──┴─ kernel(2) …
//
// exchange(s) sends chunk s and receives chunk s + 1 into the other buffer, which kernel(s - 1)
// and exchange(s - 1) have finished reading by then: two buffers suffice for any number of ranks.
// K and V of chunk 0 are two messages, those of a received chunk are one.
//
// Ranks that share a stream share its waits too: kernels with nothing but kernels between them can
// overlap, and a wait before each would part them.
#include "baracuda/ring.h"
#include "baracuda/status.h"
#include "common/error.h"
#include "ring/check_calls.h"
#include "ring/device_scope.h"
#include "ring/live_steps.h"

namespace baracuda {
namespace {

struct Chunk {
  const void* k;
  const void* v;
};

Chunk chunk_of(const baracuda_ring_call& call, int32_t step) {
  if (step == 0) return {call.step.k, call.step.v};
  const char* base = static_cast<const char*>(call.receive[step & 1]);
  return {base, base + call.message_bytes};
}

class Run {
 public:
  Run(const baracuda_ring_call* calls, int32_t count)
      : calls_(calls),
        count_(count),
        steps_(calls[0].endpoint->transport.world_size),
        shared_stream_(share_stream(calls, count)) {}

  int32_t execute() {
    for (step_ = 0; step_ < steps_; ++step_) {
      for_each_rank([this](const baracuda_ring_call& call) {
        __atomic_store_n(&call.endpoint->steps_enqueued, step_, __ATOMIC_RELAXED);
        return true;
      });
      // First the exchange, so that it is not queued behind a kernel that fills the device.
      if (exchanges(step_) && !exchange()) return join_and_report();
      if (!compute()) return join_and_report();
    }
    for_each_rank([this](const baracuda_ring_call& call) {
      __atomic_store_n(&call.endpoint->steps_enqueued, steps_, __ATOMIC_RELAXED);
      return true;
    });
    return report();
  }

 private:
  bool exchanges(int32_t step) const {
    return step >= 0 && step + 1 < steps_ && calls_[0].message_bytes > 0;
  }

  // A timeline tells the ranks apart, so it parts their kernels.
  static bool share_stream(const baracuda_ring_call* calls, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      if (calls[i].stream != calls[0].stream || calls[i].marks != nullptr ||
          calls[i].endpoint->device != calls[0].endpoint->device) {
        return false;
      }
    }
    return count > 1;
  }

  template <typename F>
  bool for_each_rank(F f) {
    for (int32_t i = 0; i < count_; ++i) {
      if (!f(calls_[i])) return false;
    }
    return true;
  }

  bool exchange() {
    // Before the first exchange: whatever the caller had enqueued, which wrote K and V and last
    // read the receive buffers. Later: kernel(s - 1). The ring stream itself keeps the order of the
    // exchanges.
    if (step_ == 0 && !record_compute_done()) return false;
    const bool ordered = for_each_rank([this](const baracuda_ring_call& call) {
      const baracuda_ring_endpoint& end = *call.endpoint;
      return enter(call) && ok(end.ops->wait(end.ring_stream, compute_done(call)), "wait", call) &&
             mark(call, &baracuda_ring_marks::exchange_begin, end.ring_stream);
    });
    if (!ordered || !exchange_messages()) return false;
    return for_each_rank([this](const baracuda_ring_call& call) {
      const baracuda_ring_endpoint& end = *call.endpoint;
      return enter(call) && mark(call, &baracuda_ring_marks::exchange_end, end.ring_stream) &&
             ok(end.ops->record(end.exchange_done[step_ & 1], end.ring_stream), "record", call);
    });
  }

  // The messages of all ranks of this thread in one group, which is closed whatever happens.
  bool exchange_messages() {
    int32_t opened = 0;
    bool good = for_each_rank([this, &opened](const baracuda_ring_call& call) {
      const baracuda_transport& transport = call.endpoint->transport;
      if (!sent(transport.group_start(transport.context), "group_start", call)) return false;
      ++opened;
      return true;
    });
    good =
        good && for_each_rank([this](const baracuda_ring_call& call) { return send_recv(call); });
    while (opened > 0) {
      const baracuda_ring_call& call = calls_[--opened];
      const baracuda_transport& transport = call.endpoint->transport;
      good = sent(transport.group_end(transport.context), "group_end", call) && good;
    }
    return good;
  }

  // A received chunk is contiguous: one message, half the operations. The caller's K and V may lie
  // anywhere; they are two messages even where they lie together, because both sides of a message
  // must agree, and neither knows the other's addresses.
  bool send_recv(const baracuda_ring_call& call) {
    const Chunk chunk = chunk_of(call, step_);
    char* into = static_cast<char*>(call.receive[(step_ + 1) & 1]);
    const int64_t bytes = call.message_bytes;
    if (step_ > 0) return send(call, chunk.k, 2 * bytes) && recv(call, into, 2 * bytes);
    return send(call, chunk.k, bytes) && send(call, chunk.v, bytes) && recv(call, into, bytes) &&
           recv(call, into + bytes, bytes);
  }

  bool send(const baracuda_ring_call& call, const void* data, int64_t bytes) {
    const baracuda_ring_endpoint& end = *call.endpoint;
    const int32_t peer = call.hops[step_].send_to;
    return sent(end.transport.send(end.transport.context, data, bytes, peer, end.ring_stream),
                "send", call);
  }
  bool recv(const baracuda_ring_call& call, void* data, int64_t bytes) {
    const baracuda_ring_endpoint& end = *call.endpoint;
    const int32_t peer = call.hops[step_].recv_from;
    return sent(end.transport.recv(end.transport.context, data, bytes, peer, end.ring_stream),
                "recv", call);
  }

  bool compute() {
    const bool is_read = exchanges(step_ + 1);  // the chunk's buffer is filled again
    if (shared_stream_) {
      return for_each_rank([this](const baracuda_ring_call& call) { return await_chunk(call); }) &&
             for_each_rank([this](const baracuda_ring_call& call) { return compute(call); }) &&
             (!is_read || record_compute_done());
    }
    return for_each_rank([this, is_read](const baracuda_ring_call& call) {
      return await_chunk(call) && compute(call) && (!is_read || record_compute_done(call));
    });
  }

  // Also where no kernel follows: the caller's stream has to join the last exchange, and
  // compute_done must not say that a buffer is free before the previous exchange left it.
  bool await_chunk(const baracuda_ring_call& call) {
    const baracuda_ring_endpoint& end = *call.endpoint;
    return enter(call) && mark(call, &baracuda_ring_marks::wait_begin, call.stream) &&
           (!exchanges(step_ - 1) ||
            ok(end.ops->wait(call.stream, end.exchange_done[(step_ - 1) & 1]), "wait", call)) &&
           mark(call, &baracuda_ring_marks::compute_begin, call.stream);
  }

  bool compute(const baracuda_ring_call& call) {
    if (!enter(call)) return false;
    launch(call);
    return mark(call, &baracuda_ring_marks::compute_end, call.stream);
  }

  // On a stream that all share the last rank's event speaks for all.
  const baracuda_ring_call& recorder(const baracuda_ring_call& call) const {
    return shared_stream_ ? calls_[count_ - 1] : call;
  }
  void* compute_done(const baracuda_ring_call& call) const {
    return recorder(call).endpoint->compute_done;
  }
  bool record_compute_done(const baracuda_ring_call& call) {
    const baracuda_ring_endpoint& end = *call.endpoint;
    return enter(call) && ok(end.ops->record(end.compute_done, call.stream), "record", call);
  }
  bool record_compute_done() {
    return for_each_rank([this](const baracuda_ring_call& call) {
      return &call != &recorder(call) || record_compute_done(call);
    });
  }

  // A failed launch is reported in the end; the ring goes on without kernels until then, because
  // the neighbours wait for the K and V that pass through here.
  void launch(const baracuda_ring_call& call) {
    if (failed_) return;
    baracuda_attention_step_params params;
    if (!LiveSteps(call).launch_params(step_, &params)) return;
    const Chunk chunk = chunk_of(call, step_);
    params.k = chunk.k;
    params.v = chunk.v;
    params.sm_margin = exchanges(step_) ? call.endpoint->max_ctas : 0;
    if (exchanges(step_)) {
      if (call.endpoint->in_clusters != 0) params.flags |= BARACUDA_STEP_GIVES_WAY;
    }
    // After the first, only steps have been enqueued on the stream, and the chunk's arrival is an
    // event that it waits for.
    if ((params.flags & BARACUDA_STEP_FIRST) == 0) params.flags |= BARACUDA_STEP_FOLLOWS;
    ok(call.endpoint->ops->launch(call.kernel, &params, call.stream), "launch", call);
  }

  bool mark(const baracuda_ring_call& call, void* baracuda_ring_marks::*which, void* stream) {
    return call.marks == nullptr ||
           ok(call.endpoint->ops->record(call.marks[step_].*which, stream), "record", call);
  }

  // A single rank's device is the caller's business, and current already.
  bool enter(const baracuda_ring_call& call) {
    return count_ == 1 ||
           ok(device_.enter(*call.endpoint->ops, call.endpoint->device), "set_device", call);
  }

  bool ok(int32_t status, const char* call_name, const baracuda_ring_call& call) {
    return note(status, status, call_name, call);
  }

  // Transports may be the caller's own, with their own codes.
  bool sent(int32_t status, const char* call_name, const baracuda_ring_call& call) {
    return note(status, BARACUDA_TRANSPORT_ERROR, call_name, call);
  }

  // Keeps the first failure: those of the clean-up after it must not hide it. A table's function
  // that failed without a record gets one here.
  bool note(int32_t status, int32_t unrecorded, const char* call_name,
            const baracuda_ring_call& call) {
    if (status == BARACUDA_OK) return true;
    if (failed_) return false;
    failed_ = true;
    if (failures_recorded() == recorded_before_ || baracuda_last_error()->status != status) {
      fail_with_code(unrecorded, status, call_name, "%s returned %d", call_name, status);
    }
    failure_ = *baracuda_last_error();
    if (failure_.rank < 0) failure_.rank = call.endpoint->transport.rank;
    failure_.step = step_;
    return false;
  }

  // After a failed exchange: what did get enqueued on the ring streams is joined all the same, so
  // that the caller may free buffers in the order of its own stream.
  int32_t join_and_report() {
    for_each_rank([this](const baracuda_ring_call& call) {
      const baracuda_ring_endpoint& end = *call.endpoint;
      if (enter(call) && end.ops->record(end.exchange_done[0], end.ring_stream) == BARACUDA_OK) {
        end.ops->wait(call.stream, end.exchange_done[0]);
      }
      return true;
    });
    return report();
  }

  int32_t report() {
    device_.leave();
    return failed_ ? restore_failure(failure_) : BARACUDA_OK;
  }

  const baracuda_ring_call* const calls_;
  const int32_t count_;
  const int32_t steps_;
  const bool shared_stream_;
  const uint64_t recorded_before_ = failures_recorded();
  int32_t step_ = 0;
  bool failed_ = false;
  baracuda_error failure_{};
  DeviceScope device_;
};

}  // namespace
}  // namespace baracuda

extern "C" int32_t baracuda_ring_run(baracuda_ring_call* calls, int32_t count) {
  const int32_t status = baracuda::check_calls(calls, count);
  return status == BARACUDA_OK ? baracuda::Run(calls, count).execute() : status;
}
