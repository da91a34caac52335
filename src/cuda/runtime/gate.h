// A kernel of one warp that holds back the launch behind it until a word is set. The device is
// current.
#pragma once

#include <stdint.h>

namespace baracuda {

int32_t load_gate();
// Resets the word's lower half once a bit of mask is set in it. Sets that of signal, unless it is
// NULL, once the launch before has ended.
int32_t gate(void* stream, void* word, uint64_t mask, void* signal);

}  // namespace baracuda
