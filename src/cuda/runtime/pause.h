// A kernel of one warp that delays a stream by some microseconds. The device must be current.
#pragma once

#include <stdint.h>

namespace baracuda {

int32_t load_pause();
int32_t pause(void* stream);
int32_t multiprocessors(int32_t* count);

}  // namespace baracuda
