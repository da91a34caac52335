// The host family's threads: one lazily started pool that every caller shares.
#pragma once

#include <stdint.h>

#include "attention/forward/host/block.h"

namespace baracuda {
namespace host {

// scratch: kScratchBytes that belong to the running thread. stop: for the item to ask now and then.
using Task = void (*)(void* context, int64_t item, void* scratch, const StopCheck& stop);

// Runs task for the items [0, count) on this thread and the pool's; returns when all are done.
// Several threads may call at once: the pool helps them in turn and each does its own work
// meanwhile, so a call never waits for another's. Whatever the threads' floating-point modes are,
// items run in the default one, so that they answer alike. BARACUDA_OUT_OF_MEMORY, not recorded: no
// memory for this thread's scratch, and nothing ran. BARACUDA_ABORTED, BARACUDA_INTERRUPTED: some
// items were left out (common/interrupt.h).
int32_t parallel_for(int64_t count, Task task, void* context, const char* call);

// Whether BARACUDA_NUM_THREADS, if set, is a number of threads.
int32_t check_threads_variable(const char* call);

// Starts the threads and takes this one's scratch. False: no memory for it.
bool start_threads();

int32_t thread_count();
void set_thread_count(int32_t threads);

}  // namespace host
}  // namespace baracuda
