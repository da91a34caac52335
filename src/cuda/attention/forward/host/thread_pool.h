// The host family's threads: one lazily started pool that every caller shares.
#pragma once

#include <stdint.h>

namespace baracuda {
namespace host {

// scratch: kScratchBytes that belong to the running thread.
using Task = void (*)(void* context, int64_t item, void* scratch);

// Runs task for the items [0, count) on this thread and the pool's; returns when all are done.
// Several threads may call at once: the pool helps them in turn and each does its own work
// meanwhile, so a call never waits for another's. False: no memory for this thread's scratch, and
// nothing ran.
bool parallel_for(int64_t count, Task task, void* context);

// Starts the threads and takes this one's scratch. False: no memory for it.
bool start_threads();

int32_t thread_count();
void set_thread_count(int32_t threads);

}  // namespace host
}  // namespace baracuda
