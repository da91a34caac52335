// The ring loop. There is one for all exchanges, ops and schedules of hops. A round is what a rank
// sends and receives during one launch. An exchange is a way to do so: by send and receive
// (exchange/send_recv.cpp), or by peer, which is by copies into the next rank's memory
// (exchange/peer/).
//
// This is the order if a step has one launch. (A step may have two, see rounds.h.) launch(s)
// follows launch(s - 1) on the caller's stream, and waits for round(s - 1). round(s) waits for
// launch(s - 1) and round(s - 1). round(0) waits for the caller's stream.
//
// round(s) sends the chunk of step s and receives the chunk of step s + 1 into the other buffer.
// launch(s - 1) and round(s - 1) have finished reading that buffer by then, so two buffers suffice
// for any number of ranks. Sums, which travel BEHIND the steps, are sent one round later.
//
// If several ranks share a stream, the waits for the inputs of all ranks are enqueued before the
// launches of all ranks. The reason is that consecutive launches on a stream can overlap, but not
// if the stream waits for an event between them.
#include "baracuda/ring.h"
#include "baracuda/status.h"
#include "common/error.h"
#include "common/interrupt.h"
#include "ring/check_calls.h"
#include "ring/device_scope.h"
#include "ring/margin.h"
#include "ring/rounds.h"

namespace baracuda {
namespace {

using Call = baracuda_ring_call;

class Run {
 public:
  Run(const Call* calls, int32_t count)
      : calls_(calls),
        count_(count),
        rounds_(calls[0]),
        shared_stream_(share_stream(calls, count)) {
    expect_record();
  }

  int32_t execute() {
    for (int32_t t = 0; t < rounds_.launches(); ++t) {
      if (t % rounds_.parts() == 0) begin_step(t / rounds_.parts());
      // The round is enqueued before the launch, because the launch may fill the device. If
      // `signalled_`, the caller's stream sets a word (a flag in shared memory,
      // exchange/peer/host_file.h) after its wait for the previous round, and the ring stream waits
      // for this word. The two streams may share a hardware queue. If the ring stream's wait were
      // enqueued first, it would hold back the operation that sets the word. So the wait on the
      // caller's stream is enqueued first.
      if (signalled_ && !await_inputs(t)) return join_and_report();
      if (!exchange(t) || !compute(t)) return join_and_report();
    }
    begin_step(rounds_.steps());
    if (!exchange(rounds_.launches()) || !settle() || !bring_home() || !finish()) {
      return join_and_report();
    }
    return report();
  }

 private:
  // True if all ranks use one stream and one device. All waits of a step are then enqueued before
  // its launches. False with a timeline, which times each rank's wait and launch separately.
  static bool share_stream(const Call* calls, int32_t count) {
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

  void begin_step(int32_t step) {
    step_ = step;
    for (int32_t i = 0; i < count_; ++i) {
      __atomic_store_n(&calls_[i].endpoint->steps_enqueued, step, __ATOMIC_RELAXED);
    }
  }

  // ---- Rounds ----------------------------------------------------------------------------------

  // Enqueues round `number`.
  bool exchange(int32_t number) {
    has_exchange_ = rounds_.has_messages(number);
    if (!has_exchange_) return true;
    // The round waits for the event compute_done, unless `signalled_`. For round 0 this event is
    // the end of all work that the caller enqueued before, which wrote the chunks and may still
    // read the buffers. For other rounds, compute() has recorded the end of launch(number - 1).
    if (number == 0 && !record_compute_done()) return false;
    if (count_ == 1) {
      const Round round(*this, calls_[0], number);
      return grant(calls_[0], round) && post_all(number, &round) && complete(calls_[0], round);
    }
    return for_each_rank([=](const Call& call) {
             return enter(call) && grant(call, Round(*this, call, number));
           }) &&
           post_all(number, nullptr) && for_each_rank([=](const Call& call) {
             return enter(call) && complete(call, Round(*this, call, number));
           });
  }

  // Round n (n is `number`) must start after launch n - 1. On the caller's stream that launch is
  // followed by the wait for round n - 1. The exchange by peer can make this wait set a word, for
  // which round n then waits (Rounds::needs_launch_alone()). If so, this returns true, and
  // compute_done is not recorded.
  bool ask_for_signal(int32_t number) const {
    if (count_ > 1 || !rounds_.needs_launch_alone(number)) return false;
    const baracuda_ring_exchange& exchange = exchange_of(calls_[0]);
    return exchange.signals != nullptr && exchange.signals(calls_[0].endpoint, number - 1) != 0;
  }

  bool grant(const Call& call, const baracuda_ring_round& round) {
    return ok(exchange_of(call).grant(call.endpoint, &round), "grant", call);
  }
  bool post(const Call& call, const baracuda_ring_round& round) {
    return ok(exchange_of(call).post(call.endpoint, &round), "post", call);
  }
  bool complete(const Call& call, const baracuda_ring_round& round) {
    return ok(exchange_of(call).complete(call.endpoint, &round), "complete", call);
  }

  // Posts the messages of all ranks of this thread in one group, which is also closed after a
  // failure. only: the round if this thread drives one rank, else NULL.
  bool post_all(int32_t number, const baracuda_ring_round* only) {
    int32_t opened = 0;
    bool good = for_each_rank([this, &opened](const Call& call) {
      if (!ok(exchange_of(call).open(call.endpoint), "open", call)) return false;
      ++opened;
      return true;
    });
    good = good && for_each_rank([=](const Call& call) {
             return post(call, only != nullptr ? *only : Round(*this, call, number));
           });
    while (opened > 0) {
      const Call& call = calls_[--opened];
      good = ok(exchange_of(call).close(call.endpoint), "close", call) && good;
    }
    return good;
  }

  struct Round : baracuda_ring_round {
    Round(const Run& run, const Call& call, int32_t n) {
      Rounds(call).fill(n, this);
      stream = call.stream;
      ready = run.recorder(call).endpoint->compute_done;
      signalled = run.signalled_ ? 1 : 0;
      free_ahead = run.rounds_.is_free_ahead(n) ? 1 : 0;
      begin_mark = call.marks == nullptr ? nullptr : call.marks[n].exchange_begin;
      end_mark = call.marks == nullptr ? nullptr : call.marks[n].exchange_end;
    }
  };

  static const baracuda_ring_exchange& exchange_of(const Call& call) {
    return *call.endpoint->exchange;
  }

  // Makes the caller's stream wait for the rounds up to `number`, in order. It leaves out those
  // for which the stream has waited already.
  bool await(const Call& call, int32_t number) {
    for (int32_t n = awaited_ + 1; n <= number; ++n) {
      if (!rounds_.has_messages(n)) continue;
      if (!ok(exchange_of(call).wait(call.endpoint, n, call.stream), "wait", call)) return false;
    }
    return true;
  }

  bool finish() {
    return for_each_rank([this](const Call& call) {
      const baracuda_ring_exchange& exchange = exchange_of(call);
      if (exchange.finish == nullptr) return true;
      return enter(call) && ok(exchange.finish(call.endpoint, call.stream), "finish", call);
    });
  }

  // ---- Launches --------------------------------------------------------------------------------

  bool compute(int32_t t) {
    if (shared_stream_) {
      if (!await_inputs(t) ||
          !for_each_rank([=](const Call& call) { return compute(call, t); })) {
        return false;
      }
    } else if (!for_each_rank([=](const Call& call) {
                 return (signalled_ || await_inputs(call, t)) && compute(call, t);
               })) {
      return false;
    }
    set_awaited(rounds_.awaited_by_launch(t));
    if (!add(t)) return false;
    const bool exchanges = rounds_.has_messages(t + 1);
    signalled_ = exchanges && ask_for_signal(t + 1);
    // Once the event compute_done is reached, the next round may read its send buffers and
    // overwrite its receive buffers.
    return !exchanges || signalled_ || record_compute_done();
  }

  bool await_inputs(int32_t t) {
    return for_each_rank([=](const Call& call) { return await_inputs(call, t); });
  }

  // Called even if nothing is launched, for two reasons. The caller's stream must wait for every
  // round. And compute_done must not report a buffer as free while the previous round still uses
  // it.
  bool await_inputs(const Call& call, int32_t t) {
    return enter(call) && mark(call, t, &baracuda_ring_marks::wait_begin) &&
           await(call, rounds_.awaited_by_launch(t)) &&
           mark(call, t, &baracuda_ring_marks::compute_begin);
  }

  bool compute(const Call& call, int32_t t) {
    if (!enter(call)) return false;
    launch(call, t);
    if (t + 1 == rounds_.launches() && !rounds_.has_messages(t + 1)) settle(call);
    // Each rank reports its own progress, since a step of many ranks may take long on the host.
    if (count_ > 1 && (t + 1) % rounds_.parts() == 0) {
      __atomic_store_n(&call.endpoint->steps_enqueued, step_ + 1, __ATOMIC_RELAXED);
    }
    return mark(call, t, &baracuda_ring_marks::compute_end) && !stopped_;
  }

  // If no sums travel, a failed launch is reported at the end of the run. Until then the ring goes
  // on without launches, because the neighbours still need the chunks that pass through this rank.
  // If sums travel, the run ends at once (ok()).
  void launch(const Call& call, int32_t t) {
    if (failed_) return;
    Step at(*this, call, t);
    const baracuda_ring_program& program = *call.program;
    if (program.is_live(call.problem, &at) == 0) return leave_nothing(call, at);
    const baracuda_ring_endpoint& end = *call.endpoint;
    if (at.sm_margin > 0 && program.grid != nullptr && end.ops->pause != nullptr) {
      baracuda_ring_grid grid{};
      if (!ok(program.grid(call.problem, &at, &grid), "grid", call)) return;
      const int32_t status =
          give_head_start(*end.ops, grid, at.sm_margin, end.in_clusters != 0, call.stream);
      if (!ok(status, "pause", call)) return;
    }
    ok(program.launch(call.problem, &at), "launch", call);
  }

  // Enqueues the program's `settle`: work that completes the launch of the last step, if that step
  // is live, and that no other rank needs. It is enqueued after the last messages, so that it does
  // not delay them. If there are no messages after the last launch, compute() has enqueued it.
  bool settle() {
    if (!rounds_.has_messages(rounds_.launches())) return true;  // compute() has done it
    return for_each_rank([this](const Call& call) {
      if (call.program->settle == nullptr) return true;
      const int32_t entry = rounds_.launches();
      return enter(call) && mark(call, entry, &baracuda_ring_marks::settle_begin) &&
             settle(call) && mark(call, entry, &baracuda_ring_marks::settle_end);
    });
  }

  bool settle(const Call& call) {
    const baracuda_ring_program& program = *call.program;
    if (failed_ || program.settle == nullptr) return true;
    const Step at(*this, call, rounds_.launches() - 1);
    if (program.is_live(call.problem, &at) != 0) {
      ok(program.settle(call.problem, &at), "settle", call);
    }
    return true;
  }

  // For a step without a launch, whose share of the sums is zero. At steps 0 and 1 the share's
  // memory is cleared. At later steps the received sum is sent on unchanged.
  void leave_nothing(const Call& call, const baracuda_ring_step& at) {
    if (at.step > 1) return;
    for (int32_t i = 0; i < call.payload_count; ++i) {
      const baracuda_ring_payload& payload = call.payloads[i];
      if (!Rounds::is_behind(payload) || payload.part != at.part) continue;
      for (int32_t j = 0; j < payload.pieces; ++j) {
        const int64_t bytes = payload.piece_bytes[j];
        if (bytes == 0) continue;
        has_added_ = true;
        const int32_t status = call.endpoint->ops->clear(at.chunk[i][j], bytes, call.stream);
        if (!ok(status, "clear", call)) return;
      }
    }
  }

  // Adds the shares that launch t computed to the sums that were received for them.
  bool add(int32_t t) {
    const int32_t sums = rounds_.awaited_by_add(t);
    return sums < 0 || add(t, sums, false);
  }

  // After the last step: adds the other ranks' sum, which has come home, to this rank's own share.
  bool bring_home() {
    if (rounds_.has_sum(rounds_.launches()) && !for_each_rank([this](const Call& call) {
          return enter(call) && mark(call, rounds_.launches(), &baracuda_ring_marks::wait_begin);
        })) {
      return false;
    }
    for (int32_t part = 0; part < rounds_.parts(); ++part) {
      const int32_t sums = rounds_.home(part);
      if (sums >= 0 && !add(rounds_.launches() + part, sums, true)) return false;
    }
    return true;
  }

  // sums: the number of the round that brings the received sums. always: true for the sum that
  // comes home after the last step. This sum is added to the share of step 0 without asking
  // is_live(): if step 0 launched nothing, its share is zero, and the sum is still part of the
  // result. If the addition at home fails, the run does not end early, because no other rank needs
  // the result.
  bool add(int32_t t, int32_t sums, bool always) {
    // In a timeline, the sums of all parts that come home are one entry.
    const int32_t entry = t < rounds_.launches() ? t : rounds_.launches();
    if (!for_each_rank([=](const Call& call) { return enter(call) && await(call, sums); })) {
      return false;
    }
    set_awaited(sums);
    return for_each_rank([=](const Call& call) {
      if (!enter(call)) return false;
      if (t == entry && !mark(call, entry, &baracuda_ring_marks::add_begin)) return false;
      return add_of_rank(call, t, always) && mark(call, entry, &baracuda_ring_marks::add_end);
    });
  }

  bool add_of_rank(const Call& call, int32_t t, bool always) {
    if (failed_) return true;
    const Step at(*this, call, t);
    const baracuda_ring_program& program = *call.program;
    if (always || program.is_live(call.problem, &at) != 0) {
      has_added_ = true;
      ok(program.add(call.problem, &at), "add", call);
    }
    return always || !stopped_;
  }

  static int32_t margin_of(baracuda_ring_endpoint& end) {
    return end.exchange->margin == nullptr ? end.max_ctas : end.exchange->margin(&end);
  }

  struct Step : baracuda_ring_step {
    // The pieces of payloads that the call does not have are NULL.
    Step(const Run& run, const Call& call, int32_t t) : baracuda_ring_step{} {
      const Rounds rounds(call);
      rank = call.endpoint->transport.rank;
      world_size = rounds.steps();
      hops = call.hops;
      sm_margin = run.has_exchange_ ? margin_of(*call.endpoint) : 0;
      follows = run.has_added_ ? 0 : 1;
      stream = call.stream;
      rounds.fill(t, this);
    }
  };

  void set_awaited(int32_t number) {
    if (number > awaited_) awaited_ = number;
  }

  // If all ranks share one stream, the last rank's event covers them all.
  const Call& recorder(const Call& call) const {
    return shared_stream_ ? calls_[count_ - 1] : call;
  }
  bool record_compute_done() {
    return for_each_rank([this](const Call& call) {
      if (&call != &recorder(call)) return true;
      const baracuda_ring_endpoint& end = *call.endpoint;
      return enter(call) && ok(end.ops->record(end.compute_done, call.stream), "record", call);
    });
  }

  bool mark(const Call& call, int32_t t, void* baracuda_ring_marks::*which) {
    return call.marks == nullptr ||
           ok(call.endpoint->ops->record(call.marks[t].*which, call.stream), "record", call);
  }

  // With a single rank, the caller has already made the rank's device current.
  bool enter(const Call& call) {
    return count_ == 1 ||
           ok(device_.enter(*call.endpoint->ops, call.endpoint->device), "set_device", call);
  }

  // ---- Failures --------------------------------------------------------------------------------

  // Keeps the first failure, so that failures of the clean-up do not hide it. Makes an error record
  // if the function has left none.
  bool ok(int32_t status, const char* call_name, const Call& call) {
    if (status == BARACUDA_OK) return true;
    if (failed_) return false;
    failed_ = true;
    // After a signal or an abort the neighbours get nothing more, so the run ends at once. A run
    // in which sums travel ends at once, too: without this rank's share the sums would be wrong.
    stopped_ = status == BARACUDA_INTERRUPTED || status == BARACUDA_ABORTED ||
               rounds_.has_sum(rounds_.launches());
    with_record(status, call_name);
    failure_ = *baracuda_last_error();
    if (failure_.rank < 0) failure_.rank = call.endpoint->transport.rank;
    failure_.step = step_;
    return false;
  }

  // For a run that ends early. Other threads or processes may drive ranks that wait for these
  // ranks, so the ring is aborted. The caller's stream still waits for what was enqueued, so that
  // the caller can free its buffers in stream order.
  int32_t join_and_report() {
    if (count_ < rounds_.steps()) {
      for_each_rank([this](const Call& call) {
        const baracuda_ring_exchange& exchange = exchange_of(call);
        restore_failure(failure_);
        if (exchange.abort != nullptr) exchange.abort(call.endpoint);
        return true;
      });
    }
    for_each_rank([this](const Call& call) {
      if (enter(call)) exchange_of(call).join(call.endpoint, call.stream);
      return true;
    });
    return report();
  }

  int32_t report() {
    device_.leave();
    return failed_ ? restore_failure(failure_) : BARACUDA_OK;
  }

  const Call* const calls_;
  const int32_t count_;
  const Rounds rounds_;
  const bool shared_stream_;
  int32_t step_ = 0;
  int32_t awaited_ = -1;    // the last round that the callers' streams have waited for
  bool has_exchange_ = false;  // a round runs during the current launch
  // The last ask_for_signal() succeeded: the next round waits for that signal, and not for
  // compute_done.
  bool signalled_ = false;
  bool has_added_ = false;  // an `add` or a clear was enqueued on a caller's stream
  bool failed_ = false;
  bool stopped_ = false;  // the failure ends the run
  baracuda_error failure_{};
  DeviceScope device_;
};

}  // namespace
}  // namespace baracuda

extern "C" int32_t baracuda_ring_run(baracuda_ring_call* calls, int32_t count) {
  const int32_t status = baracuda::check_calls(calls, count);
  if (status != BARACUDA_OK) return status;
  if (calls[0].endpoint->device >= 0) return baracuda::Run(calls, count).execute();
  const baracuda::StopScope scope(calls[0].endpoint->stop);
  return baracuda::Run(calls, count).execute();
}
