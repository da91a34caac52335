// The host family's threads: one lazily started pool that every caller shares.
#pragma once

#include <stdint.h>

#include "attention/forward/host/block.h"

namespace baracuda {
namespace host {

// scratch: kScratchBytes of the running thread. stop: the item checks it now and then.
using Task = void (*)(void* context, int64_t item, void* scratch, const StopCheck& stop);

// Runs task for the items [0, count) on this thread and the pool's threads; returns when all are
// done. Several threads may call at once: each works on its own items while the pool helps them in
// turn, so no call waits for another. Items run in the default floating-point mode, so that results
// do not depend on the threads' modes. BARACUDA_OUT_OF_MEMORY, without a record: no memory for this
// thread's scratch, and nothing ran. BARACUDA_ABORTED, BARACUDA_INTERRUPTED: some items were not
// run (common/interrupt.h).
int32_t parallel_for(int64_t count, Task task, void* context, const char* call);

// Whether BARACUDA_NUM_THREADS, if set, is a number of threads.
int32_t check_threads_variable(const char* call);

// Starts the threads and allocates this thread's scratch. False if there is no memory for it.
bool start_threads();

int32_t thread_count();
void set_thread_count(int32_t threads);

}  // namespace host
}  // namespace baracuda
