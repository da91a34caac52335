// Memory of a device (device < 0: of the host), for set-up code only.
#pragma once

#include <stdint.h>

namespace baracuda {

// The device must be current.
int32_t scratch_allocate(int32_t device, int64_t bytes, void** scratch);
// Waits for the device's work. scratch may be NULL.
void scratch_free(int32_t device, void* scratch);

}  // namespace baracuda
