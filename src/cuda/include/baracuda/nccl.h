// NCCL, loaded at run time: never linked, so the library imports where there is none.
#pragma once

#include <stdint.h>

#include "baracuda/export.h"
#include "baracuda/exchange.h"
#include "baracuda/peer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BARACUDA_NCCL_UNIQUE_ID_BYTES 128

// Binds the NCCL at path (dlopen; never closed). Once per process: a second call with another
// path is BARACUDA_INVALID_ARGUMENT, with the same path a no-op.
BARACUDA_API int32_t baracuda_nccl_load(const char* path);
BARACUDA_API const char* baracuda_nccl_path(void);       // NULL until loaded
BARACUDA_API int32_t baracuda_nccl_version(int32_t* version);  // e.g. 22809
BARACUDA_API int32_t baracuda_nccl_unique_id(void* id);  // BARACUDA_NCCL_UNIQUE_ID_BYTES

typedef struct baracuda_nccl_comm baracuda_nccl_comm;

// Collective over all ranks. Blocks until every rank has come, at most timeout_seconds (<= 0: for
// ever); a watchdog thread aborts the communicator then and the call returns BARACUDA_TIMEOUT.
// device is a CUDA ordinal, or -1 for an NCCL-compatible library that moves host memory.
// max_ctas <= 0 leaves the choice to NCCL.
BARACUDA_API int32_t baracuda_nccl_init_rank(int32_t world_size, const void* id, int32_t rank,
                                             int32_t device, int32_t max_ctas,
                                             double timeout_seconds, baracuda_nccl_comm** comm);
// All ranks of a ring in one process, one device each (ncclCommInitAll's semantics).
BARACUDA_API int32_t baracuda_nccl_init_all(int32_t count, const int32_t* devices,
                                            int32_t max_ctas, double timeout_seconds,
                                            baracuda_nccl_comm** comms);
// Borrows a ready ncclComm_t: never aborted, never destroyed by us.
BARACUDA_API int32_t baracuda_nccl_from_handle(void* handle, int32_t device,
                                               double timeout_seconds, baracuda_nccl_comm** comm);
// Collective. color < 0: this rank takes no part and *child is NULL. After a deadline or a failure
// the parent has failed too. A borrowed parent cannot be aborted: its split may block for ever.
BARACUDA_API int32_t baracuda_nccl_split(baracuda_nccl_comm* comm, int32_t color, int32_t key,
                                         double timeout_seconds, baracuda_nccl_comm** child);

BARACUDA_API int32_t baracuda_nccl_rank(const baracuda_nccl_comm* comm);
BARACUDA_API int32_t baracuda_nccl_world_size(const baracuda_nccl_comm* comm);
BARACUDA_API void* baracuda_nccl_handle(const baracuda_nccl_comm* comm);  // ncclComm_t
BARACUDA_API int32_t baracuda_nccl_is_owned(const baracuda_nccl_comm* comm);

// The endpoint that ring runs use; owned by comm, open (ring stream and events made).
BARACUDA_API baracuda_ring_endpoint* baracuda_nccl_endpoint(baracuda_nccl_comm* comm);

// Collective over the ring: lets hops inside this host use the exchange by peer. comms holds the
// ranks that the calling thread drives. wish is an enum baracuda_peer_wish, and wait an enum
// baracuda_peer_wait. After a failure the communicators have failed.
BARACUDA_API int32_t baracuda_nccl_connect_peers(baracuda_nccl_comm* const* comms, int32_t count,
                                                 int32_t wish, int32_t wait,
                                                 double timeout_seconds);
// The communicator's exchange by peer; NULL before baracuda_nccl_connect_peers().
BARACUDA_API baracuda_peer* baracuda_nccl_peer(const baracuda_nccl_comm* comm);
// Ends the exchange by peer, before baracuda_nccl_destroy(). Returns 1 if a neighbour may still
// write into registered buffers, which must then not be freed.
BARACUDA_API int32_t baracuda_nccl_close_peers(baracuda_nccl_comm* comm);

// ncclCommGetAsyncError: BARACUDA_OK, or the failure. Never blocks.
BARACUDA_API int32_t baracuda_nccl_async_error(baracuda_nccl_comm* comm);
// Aborts an owned communicator; for a borrowed one only marks it failed on our side. Does not wait:
// ncclCommAbort runs on a thread of its own, once no call is about to use the handle.
BARACUDA_API int32_t baracuda_nccl_abort(baracuda_nccl_comm* comm);
// Ends the communicator and frees it. comm may be NULL. A healthy owned communicator ends by
// ncclCommDestroy, a failed owned one by ncclCommAbort; NCCL's handle of a borrowed one is left
// alone. ncclCommDestroy waits for the other ranks of the machine: a wait beyond the timeout that
// comm was made with returns BARACUDA_TIMEOUT. An abort in progress gets up to 5 s. In both cases
// NCCL's call goes on in the background, and comm must not be used again.
BARACUDA_API int32_t baracuda_nccl_destroy(baracuda_nccl_comm* comm);
// A failed communicator refuses further use. 0 healthy, 1 failed, 2 aborted.
BARACUDA_API int32_t baracuda_nccl_state(baracuda_nccl_comm* comm);
// The same. If another rank has ended the ring, the first call that finds out also returns that
// failure.
BARACUDA_API int32_t baracuda_nccl_poll(baracuda_nccl_comm* comm, int32_t* state);

// Waits until stream is done, polling it and the communicator's async error. On an error or after
// timeout_seconds (<= 0: none) an owned communicator is aborted and the failure returned.
BARACUDA_API int32_t baracuda_nccl_synchronize(baracuda_nccl_comm* comm, void* stream,
                                               double timeout_seconds);

// baracuda_ring_all_gather() of an NCCL ring. The deadline, a failure of the ring or a signal ends
// its wait, and the communicator has then failed. Like a run it is a call that every rank makes; a
// rank that makes another kind of call meanwhile is refused.
BARACUDA_API int32_t baracuda_nccl_all_gather(baracuda_nccl_comm* comm, const void* mine,
                                              int64_t bytes, void* all, double timeout_seconds);

// Tells the ranks of this machine that this rank refuses a call: the current one if `begun`, else
// its next one (baracuda_nccl_arm() begins a call). A rank that has not begun the call gets
// `status`, with `reason` as the message, from baracuda_nccl_arm(). If a rank has begun it, the
// ring fails on all.
BARACUDA_API int32_t baracuda_nccl_refuse(baracuda_nccl_comm* comm, int32_t status,
                                          const char* reason, int32_t begun);

// Sets a deadline for a call that may block inside NCCL, such as a run's groups: arm before the
// call, disarm after it. At the deadline the watchdog aborts an owned communicator, which unblocks
// the call.
BARACUDA_API int32_t baracuda_nccl_arm(baracuda_nccl_comm* comm, double timeout_seconds);
// Returns BARACUDA_TIMEOUT if the deadline had passed.
BARACUDA_API int32_t baracuda_nccl_disarm(baracuda_nccl_comm* comm);

#ifdef __cplusplus
}
#endif
