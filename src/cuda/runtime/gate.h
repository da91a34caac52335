// A kernel of one warp that delays the next launch until a word is set. The device must be current.
#pragma once

#include <stdint.h>

namespace baracuda {

int32_t load_gate();
// Waits until the word has a bit of mask, and resets the word's lower half. Once the previous
// launch has ended, sets the lower half of signal, unless that is NULL.
int32_t gate(void* stream, void* word, uint64_t mask, void* signal);

}  // namespace baracuda
