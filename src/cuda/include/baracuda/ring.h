// The ring: one loop over two small tables, for NCCL, local and host rings alike.
#pragma once

#include <stdint.h>

#include "baracuda/attention.h"
#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Point-to-point messages between the ranks of one ring. Every function returns a
// baracuda_status. Sends and receives between group_start and group_end happen together, in the
// order of enqueueing per pair of ranks, on stream (NULL on the host, where group_end is
// synchronous). Groups nest on a thread, and only the outermost group_end acts: one thread that
// drives several ranks opens a group per rank. A function that fails without leaving a record for
// baracuda_last_error() gets one, BARACUDA_TRANSPORT_ERROR with what it returned as code.
typedef struct baracuda_transport {
  uint64_t struct_size;
  void* context;
  int32_t rank;
  int32_t world_size;
  int32_t (*group_start)(void* context);
  int32_t (*send)(void* context, const void* data, int64_t bytes, int32_t peer, void* stream);
  int32_t (*recv)(void* context, void* data, int64_t bytes, int32_t peer, void* stream);
  int32_t (*group_end)(void* context);
} baracuda_transport;

// Streams and events of one kind of device.
typedef struct baracuda_stream_ops {
  uint64_t struct_size;
  int32_t (*set_device)(int32_t device);
  int32_t (*record)(void* event, void* stream);
  int32_t (*wait)(void* stream, void* event);
  int32_t (*copy)(void* dst, const void* src, int64_t bytes, void* stream);
  int32_t (*launch)(int32_t kernel, const baracuda_attention_step_params* params, void* stream);
  int32_t (*event_create)(void** event);
  int32_t (*event_destroy)(void* event);
  int32_t (*stream_create)(void** stream, int32_t high_priority);
  int32_t (*stream_destroy)(void* stream);
  int32_t (*get_device)(int32_t* device);  // so that whoever calls set_device can undo it
  int32_t (*stream_synchronize)(void* stream);
  // Events that tell the time, for timelines; record, wait and event_destroy take them too.
  int32_t (*timed_event_create)(void** event);
  // Milliseconds from one recorded timed event to another; waits for both.
  int32_t (*elapsed)(void* from, void* to, float* milliseconds);
} baracuda_stream_ops;

BARACUDA_API const baracuda_stream_ops* baracuda_host_stream_ops(void);
// NULL in a build without CUDA.
BARACUDA_API const baracuda_stream_ops* baracuda_cuda_stream_ops(void);

// What a communicator lends to a run: its rank's transport, ring stream and events.
typedef struct baracuda_ring_endpoint {
  uint64_t struct_size;
  baracuda_transport transport;
  const baracuda_stream_ops* ops;
  int32_t device;           // CUDA ordinal, -1 on the host
  int32_t max_ctas;         // SMs that an exchange may take; 0 if unknown
  void* ring_stream;
  void* compute_done;       // recorded on the caller's stream after each step
  void* exchange_done[2];   // recorded on the ring stream, by parity of the step
  // What the last run had enqueued: the step it reached, for error messages.
  int32_t steps_enqueued;
  int32_t in_clusters;  // not 0: an exchange's blocks may come in clusters, as NCCL's do by default
} baracuda_ring_endpoint;

// Creates ring_stream and the three events of an endpoint whose ops and device are set, and
// destroys them.
BARACUDA_API int32_t baracuda_ring_endpoint_open(baracuda_ring_endpoint* endpoint);
BARACUDA_API int32_t baracuda_ring_endpoint_close(baracuda_ring_endpoint* endpoint);

// At step s a rank holds the chunk that `origin` started with; while it computes, it sends that
// chunk to `send_to` and receives the next one from `recv_from` (not in the last step).
typedef struct baracuda_ring_hop {
  int32_t origin;
  int32_t send_to;
  int32_t recv_from;
} baracuda_ring_hop;

// Hops of the plain ring: origin (rank - s) mod P, send to rank + 1, receive from rank - 1.
// hops holds world_size entries.
BARACUDA_API void baracuda_ring_schedule(int32_t rank, int32_t world_size, baracuda_ring_hop* hops);

// The timed events of one step, for a timeline.
typedef struct baracuda_ring_marks {
  void* exchange_begin;  // on the ring stream; the two of the last step are not recorded
  void* exchange_end;
  void* wait_begin;      // on the caller's stream, before it waits for the step's chunk
  void* compute_begin;   // once the chunk is there
  void* compute_end;
} baracuda_ring_marks;

// One rank's part of a run. All pointers outlive the call; the loop leaves the struct as it is, so
// it can be run again.
typedef struct baracuda_ring_call {
  uint64_t struct_size;
  baracuda_ring_endpoint* endpoint;
  void* stream;              // the caller's
  int32_t kernel;            // enum baracuda_attention_kernel
  int32_t layout;            // enum baracuda_sequence_layout
  const baracuda_ring_hop* hops;  // world_size entries
  // q, y, lse, state, shapes and strides are set; k and v are step 0's chunk, and its strides are
  // those of every received chunk; FIRST, LAST and the maps are the loop's business.
  baracuda_attention_step_params step;
  // Bytes of K, and of V. The exchange of step 0 sends K and V as two messages of so many bytes,
  // wherever they lie; a later one sends the received chunk as one message of 2*message_bytes.
  int64_t message_bytes;
  // The chunk of step s >= 1 is received into receive[s % 2]: K at +0, V at +message_bytes. Where
  // step 0's chunk was staged in a scratch buffer, receive[0] is that buffer.
  void* receive[2];
  const baracuda_ring_marks* marks;  // NULL, or world_size entries: where to record a timeline
} baracuda_ring_call;

// Runs count ranks of one ring from this thread (count = 1 for one rank per process or thread;
// count = world_size for a whole local ring). Enqueues, per step, all exchanges in one group,
// then all kernels. After the first call it allocates nothing and never synchronises the host.
// A failed launch is returned at the end: the exchanges go on, for the neighbours' sake. After a
// failed exchange the run stops, and the callers' streams join what was enqueued.
BARACUDA_API int32_t baracuda_ring_run(baracuda_ring_call* calls, int32_t count);

// Warm-up: sends a few bytes to ourselves, to the next and to the previous rank in one group, so
// that the transport connects its peers now. buffer holds at least 6*64 bytes (device or host).
BARACUDA_API int32_t baracuda_ring_warm_up(baracuda_ring_endpoint* endpoint, void* buffer);

// Every rank's few bytes of host memory, in rank order, in all (world_size * bytes) on every rank.
// Collective, for set-up: it allocates and waits for the ring stream, and several ranks of one ring
// must call it from threads of their own. bytes is the same on every rank.
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
