// The ring: one loop that moves payloads along a schedule and calls a program. It knows no op, and
// no transport.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"
#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// At step s a rank works on the chunk that rank `origin` started with. It sends that chunk to
// `send_to`, and receives the chunk of step s + 1 from `recv_from`. In the last step the two fields
// describe the way home: `send_to` is the origin of the chunk whose sum this rank holds, and
// `recv_from` is the rank that holds the sum of this rank's own chunk.
typedef struct baracuda_ring_hop {
  int32_t origin;
  int32_t send_to;
  int32_t recv_from;
} baracuda_ring_hop;

// Hops of the plain ring: origin (rank - s) mod P, send to rank + 1, receive from rank - 1.
// hops holds world_size entries. Nothing is written if hops is NULL or rank is not in
// [0, world_size).
BARACUDA_API void baracuda_ring_schedule(int32_t rank, int32_t world_size, baracuda_ring_hop* hops);

enum {
  BARACUDA_RING_MAX_PARTS = 2,     // launches of a step
  BARACUDA_RING_MAX_PAYLOADS = 4,
  BARACUDA_RING_MAX_PIECES = 4,
};

enum baracuda_ring_timing {
  // Read by step s, and sent on while it computes.
  BARACUDA_RING_BESIDE = 0,
  // Written by step s, and sent beside the next launch to the rank that adds its own share. The
  // share of step 0 stays at home. The sum of all other shares starts at step 1 and comes home
  // after the last step.
  BARACUDA_RING_BEHIND = 1,
};

// Data that travels around the ring: one chunk a rank, made of pieces. `own` points to the pieces
// of this rank's chunk in the caller's memory. BESIDE: step 0 reads and sends them. BEHIND: step 0
// writes its share there, and at the end the sum of the other shares is added. A received chunk
// lies in one of `buffers`, its pieces one after the other, and is one message.
typedef struct baracuda_ring_payload {
  int32_t timing;  // enum baracuda_ring_timing
  // The launch of a step that the payload belongs to. BESIDE: the payload is sent beside this
  // launch; in the next step, this launch and later ones read it. BEHIND: this launch writes the
  // payload, which is sent beside the next launch.
  int32_t part;
  int32_t pieces;  // 1 to BARACUDA_RING_MAX_PIECES
  int64_t piece_bytes[BARACUDA_RING_MAX_PIECES];
  void* own[BARACUDA_RING_MAX_PIECES];
  // Each buffer holds one chunk. BESIDE: the chunk of step s >= 1 is received into buffers[s % 2].
  // A staged own chunk lies in buffers[0]. BEHIND: the sum of step s >= 1 lies in buffers[s % 2],
  // and steps from 2 on write their share to buffers[2]. A buffer that the world size does not need
  // may be NULL.
  void* buffers[3];
} baracuda_ring_payload;

// What a program's functions are told.
typedef struct baracuda_ring_step {
  int32_t rank;
  int32_t world_size;
  const baracuda_ring_hop* hops;
  int32_t step;       // world_size where a sum that came home is added
  int32_t part;       // which launch of the step
  int32_t sm_margin;  // SMs that a launch must leave free
  int32_t follows;    // not 0: since the run's first launch, launches alone went to the stream
  void* stream;
  // Pointers to the pieces of each payload of the call. chunk: what the step reads (BESIDE), or
  // where it writes its share (BEHIND). received: the sum that the share is added to (BEHIND), or
  // NULL.
  void* chunk[BARACUDA_RING_MAX_PAYLOADS][BARACUDA_RING_MAX_PIECES];
  void* received[BARACUDA_RING_MAX_PAYLOADS][BARACUDA_RING_MAX_PIECES];
} baracuda_ring_step;

// How many blocks a launch has, and how many of them a multiprocessor holds.
typedef struct baracuda_ring_grid {
  int64_t blocks;
  int64_t blocks_per_multiprocessor;
} baracuda_ring_grid;

// What an op gives the loop. `problem` is the call's. Functions that enqueue do so on at->stream,
// with the rank's device current, and return a baracuda_status.
typedef struct baracuda_ring_program {
  uint64_t struct_size;
  int32_t parts;  // launches of a step, 1 to BARACUDA_RING_MAX_PARTS
  // Not 0: the launch itself adds its share to the received sum, and waits until the sum has
  // arrived. chunk and received are then the same memory.
  int32_t launch_adds;
  // Refuses a problem before anything moves; only rank and world_size are set. May be NULL.
  int32_t (*check)(const void* problem, const baracuda_ring_step* at);
  // 1 if the step launches anything; else its share is zero. Host arithmetic.
  int32_t (*is_live)(const void* problem, const baracuda_ring_step* at);
  // The grid of a launch with a margin. NULL where launches take no multiprocessors.
  int32_t (*grid)(const void* problem, const baracuda_ring_step* at, baracuda_ring_grid* grid);
  int32_t (*launch)(const void* problem, const baracuda_ring_step* at);
  // Adds chunk and received. The result goes to received on the way, and to chunk at home (step ==
  // world_size). NULL if no payload travels BEHIND.
  int32_t (*add)(const void* problem, const baracuda_ring_step* at);
  // Completes the launch of the last step, if that step is live, by work that only its own rank
  // needs. The work is enqueued after the messages for the other ranks, so it runs beside them.
  // NULL if there is none.
  int32_t (*settle)(const void* problem, const baracuda_ring_step* at);
} baracuda_ring_program;

// The timed events of one launch and of the round beside it, for a timeline.
typedef struct baracuda_ring_marks {
  void* exchange_begin;  // on the ring stream; not recorded if the entry has no round
  void* exchange_end;
  void* wait_begin;      // on the caller's stream, before it waits for what the launch reads
  void* compute_begin;   // once that is there
  void* compute_end;
  // Before and after the launch's share is added to the received sum. The sums that come home have
  // the entry after the last launch; their wait begins at wait_begin.
  void* add_begin;
  void* add_end;
  // Before and after the program's `settle`, in the entry after the last launch.
  void* settle_begin;
  void* settle_end;
} baracuda_ring_marks;

// One rank's part of a run. All pointers outlive the call; the loop leaves the struct as it is, so
// it can be run again.
typedef struct baracuda_ring_call {
  uint64_t struct_size;
  baracuda_ring_endpoint* endpoint;
  void* stream;                   // the caller's
  // world_size entries. hops[0].origin is the rank, and every rank is the origin of one entry.
  const baracuda_ring_hop* hops;
  const baracuda_ring_program* program;
  const void* problem;
  const baracuda_ring_payload* payloads;
  int32_t payload_count;
  // NULL, or where to record a timeline: an entry a launch, and one more where something travels
  // BEHIND.
  const baracuda_ring_marks* marks;
} baracuda_ring_call;

// 1 if round `number` of a call has messages. `number` is also the timeline's entry. The call is
// a valid one. 0 if it is NULL, or lacks its endpoint, program or payloads.
BARACUDA_API int32_t baracuda_ring_has_exchange(const baracuda_ring_call* call, int32_t number);
// The messages of round `number` of a call that is ready to run; the rest of *round is zero. All of
// it is zero if the call is NULL, or lacks its endpoint, program, payloads or hops. A round of NULL
// is ignored.
BARACUDA_API void baracuda_ring_messages(const baracuda_ring_call* call, int32_t number,
                                         baracuda_ring_round* round);

// 1 if something is added in that entry of a timeline. 0 for such a call as
// baracuda_ring_has_exchange returns 0 for.
BARACUDA_API int32_t baracuda_ring_has_sum(const baracuda_ring_call* call, int32_t number);

// Runs count ranks of one ring from this thread (count = 1 for one rank per process or thread;
// count = world_size for a whole local ring). Each rank has one call. Enqueues, per launch, the
// rounds of all ranks in one group, then all launches. After the first call it allocates nothing
// and never synchronises the host.
//
// If nothing travels BEHIND, a failed launch is returned at the end: the rounds go on, because the
// other ranks need the chunks that pass through this rank. Otherwise a failed launch ends the run,
// because its share would be missing in the sums that this rank sends. A failed round ends any run.
// If a run ends early, the callers' streams join what was enqueued. If other threads drive ranks of
// the ring, the exchange is aborted as well, so that those ranks do not wait.
BARACUDA_API int32_t baracuda_ring_run(baracuda_ring_call* calls, int32_t count);

#ifdef __cplusplus
}
#endif
