// The exchange between the GPUs of one host: the receiver grants a registered buffer, the sender's
// copy engine pushes into it, and words in host memory that every rank has mapped say so.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"
#include "baracuda/export.h"
#include "baracuda/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BARACUDA_PEER_HANDLE_BYTES = 64 };

// What a process gives others so that they can reach a piece of its device memory.
typedef struct baracuda_peer_memory {
  char handle[BARACUDA_PEER_HANDLE_BYTES];  // of the allocation
  int64_t offset;                           // of the piece in it
} baracuda_peer_memory;

// What the exchange needs of a device besides its streams. Every function returns a baracuda_status;
// the rank's device is current. Words are of 64 bits, and only their lower half is written by
// streams. A word of a mapping is given by its device address.
typedef struct baracuda_peer_ops {
  uint64_t struct_size;
  int32_t (*export_memory)(const void* data, int64_t bytes, baracuda_peer_memory* memory);
  int32_t (*open_memory)(const baracuda_peer_memory* memory, void** base);
  int32_t (*close_memory)(void* base);
  // Lets copies of the current device reach memory of this process on another one. NULL: ranks of one
  // process are not linked.
  int32_t (*reach)(const void* data);
  int32_t (*map_words)(void* words, int64_t bytes, void** device_words);
  int32_t (*unmap_words)(void* words);
  int32_t (*write_word)(void* stream, void* word, uint32_t value);
  // Several in their order, for less than as many writes. NULL: one by one.
  int32_t (*write_words)(void* stream, void* const* words, const uint32_t* values, int32_t count);
  // stream waits until the word and mask have a bit in common.
  int32_t (*wait_word)(void* stream, void* word, uint64_t mask);
  // The same by a kernel of one block, which resets the word, lets the launch behind it begin its
  // work then, and ends with the launch before it; then it sets signal, a word, to 1 unless that is
  // NULL. NULL where there is none.
  int32_t (*gate)(void* stream, void* word, uint64_t mask, void* signal);
  int32_t (*gate_load)(void);
  int32_t (*query)(void* stream, int32_t* done);
  // Rows of memory that lie apart, into memory where they lie together, as one copy; the pitch is from
  // the start of one to that of the next. BARACUDA_UNSUPPORTED, without a record and with nothing
  // enqueued, where it cannot. NULL: it never can.
  int32_t (*copy_rows)(void* into, const void* from, int64_t row_bytes, int64_t pitch, int32_t rows,
                       void* stream);
} baracuda_peer_ops;

// NULL in a build without CUDA.
BARACUDA_API const baracuda_peer_ops* baracuda_cuda_peer_ops(void);

// What a rank asks for. A hop is by peer where the trial works and neither of its ranks asks for NCCL.
enum baracuda_peer_wish {
  BARACUDA_PEER_AUTO = 0,
  BARACUDA_PEER_REQUIRED = 1,  // all of the rank's hops must be by peer
  BARACUDA_PEER_NEVER = 2,
};

// Why a hop is not by peer.
enum baracuda_peer_reason {
  BARACUDA_PEER_WORKS = 0,
  BARACUDA_PEER_NOT_ASKED,
  BARACUDA_PEER_NO_DEVICE,
  BARACUDA_PEER_OTHER_HOST,
  BARACUDA_PEER_NO_SHARED_FILE,
  BARACUDA_PEER_NO_EXPORT,
  BARACUDA_PEER_NO_ACCESS,
  BARACUDA_PEER_TRIAL_FAILED,
  BARACUDA_PEER_ONE_PROCESS,
  BARACUDA_PEER_REASONS,
};
BARACUDA_API const char* baracuda_peer_reason_text(int32_t reason);

// How the caller's stream waits for what arrives.
enum baracuda_peer_wait {
  BARACUDA_PEER_WAIT_EVENT = 0,  // for an event of the ring stream, which waits for the word
  BARACUDA_PEER_WAIT_VALUE = 1,  // for a word of its own
  BARACUDA_PEER_WAIT_GATE = 2,   // by a gate kernel on that word
};

typedef struct baracuda_peer_options {
  uint64_t struct_size;
  const baracuda_peer_ops* ops;  // NULL: no device that could
  int32_t wish;                  // enum baracuda_peer_wish
  int32_t wait;                  // enum baracuda_peer_wait
  double trial_seconds;          // that the trial may take
  // baracuda_ring_all_gather() for set-up, in a way of the caller's; NULL: itself.
  int32_t (*all_gather)(void* context, const void* mine, int64_t bytes, void* all);
  void* context;
} baracuda_peer_options;

typedef struct baracuda_peer baracuda_peer;

// Collective over the endpoint's transport: tries which hops (rank to rank + 1) can push, decides it
// alike on every rank, and makes the endpoint use the exchange where one of the rank's hops can. A
// REQUIRED that cannot be met is BARACUDA_UNSUPPORTED on every rank. It waits for the ring stream, and
// a signal that comes in the trial ends it.
BARACUDA_API int32_t baracuda_peer_connect(baracuda_ring_endpoint* endpoint,
                                           const baracuda_peer_options* options,
                                           baracuda_peer** peer);
// Why the hop from rank to rank + 1 is not by peer; BARACUDA_PEER_WORKS if it is.
BARACUDA_API int32_t baracuda_peer_reason_of(const baracuda_peer* peer, int32_t rank);
// What that reason's own error said; may be empty.
BARACUDA_API const char* baracuda_peer_detail_of(const baracuda_peer* peer, int32_t rank);

// Collective: rounds may receive into this memory from now on. Every rank names the same buffers in
// the same order, with room for the same chunks. Memory that cannot be shared is
// BARACUDA_UNSUPPORTED on every rank.
BARACUDA_API int32_t baracuda_peer_register(baracuda_peer* peer, void* data, int64_t bytes);
// Whether [data, data + bytes) is registered; also where no hop is by peer.
BARACUDA_API int32_t baracuda_peer_is_registered(const baracuda_peer* peer, const void* data,
                                                 int64_t bytes);

// Ends every wait of the ranks on this host, which all fail then: they may have consumed what never
// came. By stores of this thread alone; the first reason stays.
BARACUDA_API void baracuda_peer_abort(baracuda_peer* peer, const baracuda_error* reason);
// Once a rank of this host has aborted, its reason with its status, so that the same fault is the
// same on every rank and over every exchange; BARACUDA_ABORTED where that was the process's own (a
// signal, memory, a device's error). BARACUDA_INVALID_ARGUMENT where a neighbour's runs are of
// another problem; else BARACUDA_OK.
BARACUDA_API int32_t baracuda_peer_check(baracuda_peer* peer);

// Gives everything back, at most `patience` seconds after the ring stream's work has ended (<= 0:
// waits for it without a limit; once both neighbours have closed or are gone it ends what still waits
// for them). What it could not give back by then stays. *quarantined, if not NULL: whether the
// neighbour may still write into registered buffers. The endpoint must not be used for rounds any
// more.
BARACUDA_API int32_t baracuda_peer_close(baracuda_peer* peer, double patience,
                                         int32_t* quarantined);

#ifdef __cplusplus
}
#endif
