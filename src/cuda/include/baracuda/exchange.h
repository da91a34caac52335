// How the ranks of a ring move chunks: messages, streams and events, and exchanges built on them.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Point-to-point messages between the ranks of one ring. Every function returns a baracuda_status.
// Messages between group_start and group_end are one group: they are carried out together on
// `stream`, in enqueue order for each pair of ranks. On the host, stream is NULL and group_end is
// synchronous. Groups nest on a thread, and only the outermost group_end acts; a thread that drives
// several ranks opens one group a rank. If a function fails without a record for
// baracuda_last_error(), the ring makes one: BARACUDA_TRANSPORT_ERROR, with the returned value as
// its code.
typedef struct baracuda_transport {
  uint64_t struct_size;
  void* context;
  int32_t rank;
  int32_t world_size;
  int32_t (*group_start)(void* context);
  int32_t (*send)(void* context, const void* data, int64_t bytes, int32_t peer, void* stream);
  int32_t (*recv)(void* context, void* data, int64_t bytes, int32_t peer, void* stream);
  int32_t (*group_end)(void* context);
  // This rank sends no more of a run, and other ranks may wait for it. Their waits and their later
  // calls fail; the reason is the calling thread's last failure. It does not wait for them. NULL:
  // they cannot be told, and wait until a timeout of the transport's own.
  void (*abort)(void* context);
} baracuda_transport;

// Streams and events of one kind of device. Every function returns a baracuda_status.
typedef struct baracuda_stream_ops {
  uint64_t struct_size;
  int32_t (*set_device)(int32_t device);
  int32_t (*get_device)(int32_t* device);  // so that whoever calls set_device can undo it
  int32_t (*record)(void* event, void* stream);
  int32_t (*wait)(void* stream, void* event);
  int32_t (*copy)(void* dst, const void* src, int64_t bytes, void* stream);
  int32_t (*clear)(void* dst, int64_t bytes, void* stream);  // sets every byte to zero
  int32_t (*event_create)(void** event);
  int32_t (*event_destroy)(void* event);
  int32_t (*stream_create)(void** stream, int32_t high_priority);
  int32_t (*stream_destroy)(void* stream);
  int32_t (*stream_synchronize)(void* stream);
  // Events that tell the time, for timelines; record, wait and event_destroy take them too.
  int32_t (*timed_event_create)(void** event);
  // Milliseconds from one recorded timed event to another; waits for both.
  int32_t (*elapsed)(void* from, void* to, float* milliseconds);
  // Delays the stream by some microseconds, so that a kernel on another stream reaches the device
  // first. NULL if kernels do not compete for a device.
  int32_t (*pause)(void* stream);
  // Loads the kernel that pause launches. NULL if pause is NULL.
  int32_t (*pause_load)(void);
  // Multiprocessors of the current device. NULL if pause is NULL.
  int32_t (*multiprocessors)(int32_t* count);
} baracuda_stream_ops;

BARACUDA_API const baracuda_stream_ops* baracuda_host_stream_ops(void);
// NULL in a build without CUDA.
BARACUDA_API const baracuda_stream_ops* baracuda_cuda_stream_ops(void);

typedef struct baracuda_ring_message {
  void* data;  // a send reads it
  int64_t bytes;
  int32_t peer;
} baracuda_ring_message;

enum { BARACUDA_RING_MAX_MESSAGES = 8 };

// One round of one rank: what it sends and receives together.
typedef struct baracuda_ring_round {
  int32_t number;  // rises during a run, the same on every rank; some are left out
  int32_t send_count;
  int32_t receive_count;
  // The caller's stream, and an event on it. Once the event is reached, the data to send has been
  // written and the receive buffers are no longer read.
  void* stream;
  void* ready;
  // Not 0: the wait for the previous round, which is enqueued already, signals this, and ready is
  // not recorded.
  int32_t signalled;
  // Not 0: the receive buffers are free once the previous round has ended, earlier than ready.
  int32_t free_ahead;
  // Timed events for the round's begin and end, NULL without a timeline.
  void* begin_mark;
  void* end_mark;
  baracuda_ring_message sends[BARACUDA_RING_MAX_MESSAGES];
  baracuda_ring_message receives[BARACUDA_RING_MAX_MESSAGES];
} baracuda_ring_round;

typedef struct baracuda_ring_endpoint baracuda_ring_endpoint;

// How rounds are carried out. For every round the loop calls grant for each rank that this thread
// drives, then open, post and close, then complete. Later it calls wait once a round, in the order
// of the rounds. The rounds of a rank are carried out in order: a round may send what the previous
// one received, and receive into what the previous one sent. An exchange by send and receive does
// its work in post. An exchange that pushes into the neighbour's memory uses grant to tell the
// sender that the receive buffers may be written, and copies in post. No function here may wait for
// a device.
typedef struct baracuda_ring_exchange {
  uint64_t struct_size;
  const char* name;
  // Makes receive buffers known to the neighbours. Collective, before a run. NULL if rounds can
  // receive into any memory.
  int32_t (*register_buffer)(baracuda_ring_endpoint* endpoint, void* data, int64_t bytes);
  int32_t (*grant)(baracuda_ring_endpoint* endpoint, const baracuda_ring_round* round);
  // Messages that are posted between open and close are one group. A close follows every open that
  // succeeded, also after a failure.
  int32_t (*open)(baracuda_ring_endpoint* endpoint);
  int32_t (*post)(baracuda_ring_endpoint* endpoint, const baracuda_ring_round* round);
  int32_t (*close)(baracuda_ring_endpoint* endpoint);
  int32_t (*complete)(baracuda_ring_endpoint* endpoint, const baracuda_ring_round* round);
  // Makes stream wait until this rank has received a round's messages. If finish is NULL, stream
  // also waits until this rank's own messages have arrived.
  int32_t (*wait)(baracuda_ring_endpoint* endpoint, int32_t number, void* stream);
  // After a failure: makes stream wait for everything that was enqueued.
  int32_t (*join)(baracuda_ring_endpoint* endpoint, void* stream);
  // After a run's last launch: makes stream wait until this rank's messages have arrived. May be
  // NULL.
  int32_t (*finish)(baracuda_ring_endpoint* endpoint, void* stream);
  // Asks that the wait for a round, enqueued directly after a launch, tell the next round's grant
  // that the launch has ended. No event is then recorded between the two, and that grant follows
  // the wait. Returns 0 if the wait will not tell. May be NULL.
  int32_t (*signals)(baracuda_ring_endpoint* endpoint, int32_t number);
  // Multiprocessors that the round posted last takes. NULL: the endpoint's max_ctas.
  int32_t (*margin)(baracuda_ring_endpoint* endpoint);
  // As the transport's, for all ways by which the exchange moves messages. Before join. NULL: the
  // other ranks cannot be told.
  void (*abort)(baracuda_ring_endpoint* endpoint);
} baracuda_ring_exchange;

// Rounds by a transport's sends and receives on the endpoint's ring stream.
BARACUDA_API const baracuda_ring_exchange* baracuda_send_recv_exchange(void);

// What a communicator lends to a run: one rank's way to the others.
struct baracuda_ring_endpoint {
  uint64_t struct_size;
  baracuda_transport transport;
  const baracuda_ring_exchange* exchange;
  void* exchange_context;  // the exchange's own
  const baracuda_stream_ops* ops;
  int32_t device;       // CUDA ordinal, -1 on the host
  int32_t max_ctas;     // SMs that a round may take; 0 if none or unknown
  int32_t in_clusters;  // not 0: its blocks may come in clusters, as NCCL's do by default
  // What the last run had enqueued: the step it reached, for error messages.
  int32_t steps_enqueued;
  void* ring_stream;
  void* compute_done;      // recorded on the caller's stream after each launch
  void* exchange_done[4];  // recorded on the ring stream, by number of the round
  // NULL, or a word that is not 0 once the ring was aborted. A run on the host then ends early.
  const int32_t* stop;
};

// Opens an endpoint whose transport, ops and device are set: creates ring_stream and the events,
// and loads what the loop may launch. If exchange is NULL, it becomes the exchange by send and
// receive. baracuda_ring_endpoint_close destroys what this created.
BARACUDA_API int32_t baracuda_ring_endpoint_open(baracuda_ring_endpoint* endpoint);
BARACUDA_API int32_t baracuda_ring_endpoint_close(baracuda_ring_endpoint* endpoint);

// Warm-up: sends a few bytes to ourselves, to the next and to the previous rank in one group, so
// that the transport connects its peers now. buffer holds at least 6*64 bytes (device or host). If
// an argument is refused, the transport's abort is called, so that the other ranks do not wait.
BARACUDA_API int32_t baracuda_ring_warm_up(baracuda_ring_endpoint* endpoint, void* buffer);

// Gathers a few bytes of host memory from every rank into `all` (world_size * bytes), in rank
// order. Collective, for set-up: it allocates, and waits for the ring stream. Each rank of the ring
// must call it from a thread of its own. bytes is the same on every rank. After any failure the
// transport's abort is called, so that the other ranks do not wait.
BARACUDA_API int32_t baracuda_ring_all_gather(baracuda_ring_endpoint* endpoint, const void* mine,
                                              int64_t bytes, void* all);

// ---- Local rings: P virtual ranks in one process -------------------------------------------

typedef struct baracuda_local_world baracuda_local_world;

BARACUDA_API int32_t baracuda_local_world_create(int32_t world_size, double timeout_seconds,
                                                 baracuda_local_world** world);
// Fails every waiting and every later call of the world's ranks with BARACUDA_ABORTED.
BARACUDA_API int32_t baracuda_local_world_abort(baracuda_local_world* world);
BARACUDA_API int32_t baracuda_local_world_destroy(baracuda_local_world* world);
// Fills endpoint->transport for a rank; endpoint->ops and device are set by the caller before.
BARACUDA_API int32_t baracuda_local_transport(baracuda_local_world* world, int32_t rank,
                                              baracuda_ring_endpoint* endpoint);

#ifdef __cplusplus
}
#endif
