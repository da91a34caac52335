// The exchange by the sends and receives of a transport (NCCL's, a local ring's or the caller's
// own), on the endpoint's ring stream.
#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace {

using Endpoint = baracuda_ring_endpoint;
using Round = baracuda_ring_round;

int32_t record(const Endpoint& end, void* event) {
  return with_record(end.ops->record(event, end.ring_stream), "record");
}

int32_t grant(Endpoint* end, const Round* round) {
  // The receive buffers are free once `ready` is reached and the earlier rounds have ended. The
  // ring stream runs the rounds in order, so it need only wait for `ready`.
  const int32_t status =
      with_record(end->ops->wait(end->ring_stream, round->ready), "wait");
  if (status != BARACUDA_OK || round->begin_mark == nullptr) return status;
  return record(*end, round->begin_mark);
}

int32_t open(Endpoint* end) {
  const baracuda_transport& transport = end->transport;
  return with_record(transport.group_start(transport.context), "group_start",
                     BARACUDA_TRANSPORT_ERROR);
}

int32_t post(Endpoint* end, const Round* round) {
  const baracuda_transport& transport = end->transport;
  int32_t status = BARACUDA_OK;
  for (int32_t i = 0; i < round->send_count && status == BARACUDA_OK; ++i) {
    const baracuda_ring_message& out = round->sends[i];
    status = with_record(
        transport.send(transport.context, out.data, out.bytes, out.peer, end->ring_stream), "send",
        BARACUDA_TRANSPORT_ERROR);
  }
  for (int32_t i = 0; i < round->receive_count && status == BARACUDA_OK; ++i) {
    const baracuda_ring_message& in = round->receives[i];
    status = with_record(
        transport.recv(transport.context, in.data, in.bytes, in.peer, end->ring_stream), "recv",
        BARACUDA_TRANSPORT_ERROR);
  }
  return status;
}

int32_t close(Endpoint* end) {
  const baracuda_transport& transport = end->transport;
  return with_record(transport.group_end(transport.context), "group_end",
                     BARACUDA_TRANSPORT_ERROR);
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
  return with_record(end->ops->wait(stream, done_event(*end, number)), "wait");
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
