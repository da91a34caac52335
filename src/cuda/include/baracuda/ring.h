// The ring: one loop that moves payloads along a schedule and calls a program. It knows no op, and
// no transport.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"
#include "baracuda/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// At step s a rank works on the chunk that `origin` started with. It sends that chunk to `send_to`
// and receives the one of step s + 1 from `recv_from`. In the last step these two say where sums go
// home: to the chunk's origin, and from whom its own chunk's come.
typedef struct baracuda_ring_hop {
  int32_t origin;
  int32_t send_to;
  int32_t recv_from;
} baracuda_ring_hop;

// Hops of the plain ring: origin (rank - s) mod P, send to rank + 1, receive from rank - 1.
// hops holds world_size entries.
BARACUDA_API void baracuda_ring_schedule(int32_t rank, int32_t world_size, baracuda_ring_hop* hops);

enum {
  BARACUDA_RING_MAX_PARTS = 2,     // launches of a step
  BARACUDA_RING_MAX_PAYLOADS = 4,
  BARACUDA_RING_MAX_PIECES = 4,
};

enum baracuda_ring_timing {
  // Read by step s, and sent on while it computes.
  BARACUDA_RING_BESIDE = 0,
  // Written by step s, sent on beside the next launch, added to by the next rank. The share of step
  // 0 stays at home; the sum of the others starts at step 1 and comes home after the last step.
  BARACUDA_RING_BEHIND = 1,
};

// Something that travels: for every rank a chunk, in pieces. This rank's own chunk lies where the
// caller has it, a piece at a time: BESIDE it is what step 0 reads and sends; BEHIND it is where step
// 0 leaves its share, and where the sum of the others is added in the end. Received chunks lie in
// `buffers`, pieces one after the other, and are one message.
typedef struct baracuda_ring_payload {
  int32_t timing;  // enum baracuda_ring_timing
  // BESIDE: it is sent beside this launch of a step, and this and later launches of the next step
  // read it. BEHIND: this launch writes it, and it is sent beside the next one.
  int32_t part;
  int32_t pieces;  // 1 to BARACUDA_RING_MAX_PIECES
  int64_t piece_bytes[BARACUDA_RING_MAX_PIECES];
  void* own[BARACUDA_RING_MAX_PIECES];
  // Each holds a chunk. BESIDE: the chunk of step s >= 1 is received into buffers[s % 2]; where the
  // own chunk was staged, buffers[0] is where. BEHIND: the sum of step s >= 1 is in buffers[s % 2],
  // and steps after the first two leave their share in buffers[2]. A buffer that a world size does
  // not need may be NULL.
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
  // Of each payload of the call, piece by piece. chunk: BESIDE what the step reads, BEHIND where it writes its
  // share. received: BEHIND the sum to add the share to; NULL where there is none.
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
  // Not 0: a launch adds its share to what was received, and is held up until that has come. Then
  // chunk and received are the same memory.
  int32_t launch_adds;
  // Refuses a problem before anything moves; only rank and world_size are set. May be NULL.
  int32_t (*check)(const void* problem, const baracuda_ring_step* at);
  // 1 if the step launches anything; else its share is zero. Host arithmetic.
  int32_t (*is_live)(const void* problem, const baracuda_ring_step* at);
  // The grid of a launch with a margin. NULL where launches take no multiprocessors.
  int32_t (*grid)(const void* problem, const baracuda_ring_step* at, baracuda_ring_grid* grid);
  int32_t (*launch)(const void* problem, const baracuda_ring_step* at);
  // Adds chunk and received: into received on the way, into chunk at home (step == world_size).
  // NULL where nothing travels BEHIND.
  int32_t (*add)(const void* problem, const baracuda_ring_step* at);
  // What the run's last launch, if it is live, leaves to be done for its own rank alone: enqueued
  // behind the messages of what it left for others, and so beside them. NULL where there is nothing.
  int32_t (*settle)(const void* problem, const baracuda_ring_step* at);
} baracuda_ring_program;

// The timed events of one launch and of the exchange beside it, for a timeline.
typedef struct baracuda_ring_marks {
  void* exchange_begin;  // on the exchange's stream; not recorded where there is none
  void* exchange_end;
  void* wait_begin;      // on the caller's stream, before it waits for what the launch reads
  void* compute_begin;   // once that is there
  void* compute_end;
  // Around the adding of the launch's share to the sum that has come for it. Of the sums that came
  // home, in the entry after the last launch's: there the wait begins at wait_begin.
  void* add_begin;
  void* add_end;
  // Around what the last launch left for its own rank, in that entry.
  void* settle_begin;
  void* settle_end;
} baracuda_ring_marks;

// One rank's part of a run. All pointers outlive the call; the loop leaves the struct as it is, so
// it can be run again.
typedef struct baracuda_ring_call {
  uint64_t struct_size;
  baracuda_ring_endpoint* endpoint;
  void* stream;                   // the caller's
  const baracuda_ring_hop* hops;  // world_size entries
  const baracuda_ring_program* program;
  const void* problem;
  const baracuda_ring_payload* payloads;
  int32_t payload_count;
  // NULL, or where to record a timeline: an entry a launch, and one more where something travels
  // BEHIND.
  const baracuda_ring_marks* marks;
} baracuda_ring_call;

// 1 if exchange `number` of a call (of a timeline's entry) has messages. The call is a valid one.
BARACUDA_API int32_t baracuda_ring_has_exchange(const baracuda_ring_call* call, int32_t number);
// The messages of exchange `number` of a call that is ready to run; the rest of round is zero.
BARACUDA_API void baracuda_ring_messages(const baracuda_ring_call* call, int32_t number,
                                         baracuda_ring_round* round);

// 1 if something is added in that entry of a timeline.
BARACUDA_API int32_t baracuda_ring_has_sum(const baracuda_ring_call* call, int32_t number);

// Runs count ranks of one ring from this thread (count = 1 for one rank per process or thread;
// count = world_size for a whole local ring). Enqueues, per launch, all exchanges in one group,
// then all launches. After the first call it allocates nothing and never synchronises the host.
// A failed launch is returned at the end: the exchanges go on, for the neighbours' sake. After a
// failed exchange the run stops, and the callers' streams join what was enqueued.
BARACUDA_API int32_t baracuda_ring_run(baracuda_ring_call* calls, int32_t count);

#ifdef __cplusplus
}
#endif
