// The exchange between the GPUs of one host. The receiver grants a registered buffer, and the
// sender's copy engine pushes into it. Both signal by words in host memory that every rank has
// mapped.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"
#include "baracuda/export.h"
#include "baracuda/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BARACUDA_PEER_HANDLE_BYTES = 64 };

// A handle by which other processes can open a piece of device memory.
typedef struct baracuda_peer_memory {
  char handle[BARACUDA_PEER_HANDLE_BYTES];  // of the allocation
  int64_t offset;                           // of the piece in it
} baracuda_peer_memory;

// What the exchange needs of a device besides its streams. Every function returns a baracuda_status
// and is called with the rank's device current. A word has 64 bits; streams write its lower half
// only, and functions take it by its device address.
typedef struct baracuda_peer_ops {
  uint64_t struct_size;
  int32_t (*export_memory)(const void* data, int64_t bytes, baracuda_peer_memory* memory);
  int32_t (*open_memory)(const baracuda_peer_memory* memory, void** base);
  int32_t (*close_memory)(void* base);
  // Lets the current device copy to memory of this process on another device. NULL: ranks of one
  // process cannot use the exchange.
  int32_t (*reach)(const void* data);
  int32_t (*map_words)(void* words, int64_t bytes, void** device_words);
  int32_t (*unmap_words)(void* words);
  int32_t (*write_word)(void* stream, void* word, uint32_t value);
  // Writes several words in order, cheaper than one by one. NULL: the exchange writes them one by
  // one.
  int32_t (*write_words)(void* stream, void* const* words, const uint32_t* values, int32_t count);
  // stream waits until the word and mask have a bit in common.
  int32_t (*wait_word)(void* stream, void* word, uint64_t mask);
  // The same wait by a kernel of one block. When the word matches, the kernel resets it and lets
  // the next launch begin its work. The kernel ends once the previous launch has ended; it then
  // sets the word `signal` to 1, unless that is NULL. NULL if the device has no such kernel.
  int32_t (*gate)(void* stream, void* word, uint64_t mask, void* signal);
  int32_t (*gate_load)(void);
  int32_t (*query)(void* stream, int32_t* done);
  // Copies rows that lie `pitch` bytes apart into contiguous memory, as one copy. Returns
  // BARACUDA_UNSUPPORTED, with no record and nothing enqueued, if one copy cannot do it. NULL: it
  // never can.
  int32_t (*copy_rows)(void* into, const void* from, int64_t row_bytes, int64_t pitch, int32_t rows,
                       void* stream);
} baracuda_peer_ops;

// NULL in a build without CUDA.
BARACUDA_API const baracuda_peer_ops* baracuda_cuda_peer_ops(void);

// What a rank asks for. A hop uses the exchange by peer if the trial works and none of its two
// ranks says NEVER.
enum baracuda_peer_wish {
  BARACUDA_PEER_AUTO = 0,
  BARACUDA_PEER_REQUIRED = 1,  // all hops of the rank must be by peer
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
  BARACUDA_PEER_WAIT_EVENT = 0,  // it waits for an event of the ring stream, which waits for the word
  BARACUDA_PEER_WAIT_VALUE = 1,  // it waits for a word of its own
  BARACUDA_PEER_WAIT_GATE = 2,   // it runs a gate kernel that waits for that word
};

typedef struct baracuda_peer_options {
  uint64_t struct_size;
  const baracuda_peer_ops* ops;  // NULL: no device can
  int32_t wish;                  // enum baracuda_peer_wish
  int32_t wait;                  // enum baracuda_peer_wait
  double trial_seconds;          // limit of the trial
  // The caller's own all-gather for set-up; NULL: baracuda_ring_all_gather().
  int32_t (*all_gather)(void* context, const void* mine, int64_t bytes, void* all);
  void* context;
} baracuda_peer_options;

typedef struct baracuda_peer baracuda_peer;

// Collective over the endpoint's transport. Tries which hops (rank to rank + 1) can push; all ranks
// get the same result. The endpoint then uses the exchange if one of the rank's hops can push. A
// REQUIRED that cannot be met is BARACUDA_UNSUPPORTED on every rank. Waits for the ring stream; a
// signal ends the trial.
BARACUDA_API int32_t baracuda_peer_connect(baracuda_ring_endpoint* endpoint,
                                           const baracuda_peer_options* options,
                                           baracuda_peer** peer);
// Why the hop from rank to rank + 1 is not by peer; BARACUDA_PEER_WORKS if it is.
BARACUDA_API int32_t baracuda_peer_reason_of(const baracuda_peer* peer, int32_t rank);
// The message of the error behind that reason; may be empty.
BARACUDA_API const char* baracuda_peer_detail_of(const baracuda_peer* peer, int32_t rank);

// Collective: registers memory that rounds may receive into from now on. Every rank registers the
// same buffers in the same order, with room for the same chunks. Memory that cannot be shared is
// BARACUDA_UNSUPPORTED on every rank.
BARACUDA_API int32_t baracuda_peer_register(baracuda_peer* peer, void* data, int64_t bytes);
// Whether [data, data + bytes) is registered; also where no hop is by peer.
BARACUDA_API int32_t baracuda_peer_is_registered(const baracuda_peer* peer, const void* data,
                                                 int64_t bytes);

// Ends every wait of the ranks on this host. All of them fail, since they may have read data that
// never arrived. This thread only stores words, so it cannot block; the first reason is kept.
BARACUDA_API void baracuda_peer_abort(baracuda_peer* peer, const baracuda_error* reason);
// After a rank of this host has aborted: that rank's status and reason, so that every rank reports
// the same fault. If the fault concerned that process alone (a signal, memory, a device error), the
// status is BARACUDA_ABORTED. BARACUDA_INVALID_ARGUMENT if a neighbour runs another problem. Else
// BARACUDA_OK.
BARACUDA_API int32_t baracuda_peer_check(baracuda_peer* peer);

// Frees everything. Waits at most `patience` seconds for the ring stream's work to end; <= 0:
// without a limit, but once both neighbours have closed or died it ends the waits for them. What
// cannot be freed by then is leaked. *quarantined, if not NULL, gets whether the neighbour may
// still write into registered buffers. The endpoint must not be used for rounds afterwards.
BARACUDA_API int32_t baracuda_peer_close(baracuda_peer* peer, double patience,
                                         int32_t* quarantined);

#ifdef __cplusplus
}
#endif
