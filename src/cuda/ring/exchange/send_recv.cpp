// The exchange by the sends and receives of a transport (NCCL's, a local ring's or the caller's
// own), on the endpoint's ring stream.
#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace {

using Endpoint = baracuda_ring_endpoint;
using Round = baracuda_ring_round;

// Calls f, which may be the caller's function. If f fails without an error record, this makes one
// with the status `unrecorded`, or with f's status if `unrecorded` is BARACUDA_OK.
template <typename F>
int32_t recorded(const char* call, int32_t unrecorded, F f) {
  const int32_t status = f();
  if (status == BARACUDA_OK) return status;
  if (has_record() && baracuda_last_error()->status == status) return status;
  return fail_with_code(unrecorded != BARACUDA_OK ? unrecorded : status, status, call,
                        "%s returned %d", call, status);
}

template <typename F>
int32_t stream_op(const char* call, F f) {
  return recorded(call, BARACUDA_OK, f);
}
template <typename F>
int32_t message(const char* call, F f) {
  return recorded(call, BARACUDA_TRANSPORT_ERROR, f);
}

int32_t record(const Endpoint& end, void* event) {
  return stream_op("record", [&] { return end.ops->record(event, end.ring_stream); });
}

int32_t grant(Endpoint* end, const Round* round) {
  // The receive buffers are free once `ready` is reached and the earlier rounds have ended. The
  // ring stream runs the rounds in order, so it need only wait for `ready`.
  const int32_t status =
      stream_op("wait", [&] { return end->ops->wait(end->ring_stream, round->ready); });
  if (status != BARACUDA_OK || round->begin_mark == nullptr) return status;
  return record(*end, round->begin_mark);
}

int32_t open(Endpoint* end) {
  const baracuda_transport& transport = end->transport;
  return message("group_start", [&] { return transport.group_start(transport.context); });
}

int32_t post(Endpoint* end, const Round* round) {
  const baracuda_transport& transport = end->transport;
  int32_t status = BARACUDA_OK;
  for (int32_t i = 0; i < round->send_count && status == BARACUDA_OK; ++i) {
    const baracuda_ring_message& out = round->sends[i];
    status = message("send", [&] {
      return transport.send(transport.context, out.data, out.bytes, out.peer, end->ring_stream);
    });
  }
  for (int32_t i = 0; i < round->receive_count && status == BARACUDA_OK; ++i) {
    const baracuda_ring_message& in = round->receives[i];
    status = message("recv", [&] {
      return transport.recv(transport.context, in.data, in.bytes, in.peer, end->ring_stream);
    });
  }
  return status;
}

int32_t close(Endpoint* end) {
  const baracuda_transport& transport = end->transport;
  return message("group_end", [&] { return transport.group_end(transport.context); });
}

// At most four rounds are enqueued before the caller's stream waits for the first of them, so four
// events, used in turn, are enough.
void* done_event(const Endpoint& end, int32_t number) { return end.exchange_done[number & 3]; }

int32_t complete(Endpoint* end, const Round* round) {
  int32_t status = BARACUDA_OK;
  if (round->end_mark != nullptr) status = record(*end, round->end_mark);
  return status == BARACUDA_OK ? record(*end, done_event(*end, round->number)) : status;
}

int32_t wait(Endpoint* end, int32_t number, void* stream) {
  return stream_op("wait", [&] { return end->ops->wait(stream, done_event(*end, number)); });
}

int32_t join(Endpoint* end, void* stream) {
  const int32_t status = record(*end, end->exchange_done[0]);
  return status == BARACUDA_OK ? wait(end, 0, stream) : status;
}

void abort(Endpoint* end) {
  const baracuda_transport& transport = end->transport;
  if (transport.abort != nullptr) transport.abort(transport.context);
}

constexpr baracuda_ring_exchange exchange = {sizeof(baracuda_ring_exchange),
                                             "send_recv",
                                             nullptr,
                                             grant,
                                             open,
                                             post,
                                             close,
                                             complete,
                                             wait,
                                             join,
                                             nullptr,
                                             nullptr,
                                             nullptr,
                                             abort};

}  // namespace
}  // namespace baracuda

extern "C" const baracuda_ring_exchange* baracuda_send_recv_exchange(void) {
  return &baracuda::exchange;
}
