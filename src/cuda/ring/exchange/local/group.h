// The transport functions of a local ring. Groups work as NCCL's do; a thread has one open at most.
#pragma once

#include <stdint.h>

namespace baracuda {

// context is a LocalRank.
int32_t local_group_start(void* context);
int32_t local_send(void* context, const void* data, int64_t bytes, int32_t peer, void* stream);
int32_t local_recv(void* context, void* data, int64_t bytes, int32_t peer, void* stream);
int32_t local_group_end(void* context);
// Aborts the rank's world. The reason is the thread's last failure.
void local_abort(void* context);

}  // namespace baracuda
