// What the other ranks of a ring are told of a rank's failure.
#pragma once

#include <stdint.h>

#include <cstdio>

#include "baracuda/status.h"

namespace baracuda {

// The status that the other ranks report. A fault of the ring has the same status on every rank.
// After a fault of one process (a signal, memory, a device error) the others report
// BARACUDA_ABORTED.
inline int32_t status_of_others(int32_t status) {
  switch (status) {
    case BARACUDA_INVALID_ARGUMENT:
    case BARACUDA_UNSUPPORTED:
    case BARACUDA_MISALIGNED:
    case BARACUDA_TIMEOUT:
    case BARACUDA_NCCL_ERROR:
    case BARACUDA_TRANSPORT_ERROR:
      return status;
    default:
      return BARACUDA_ABORTED;
  }
}

// The failure that the other ranks report once `rank` has aborted the ring for this reason.
inline baracuda_error failure_of_others(const baracuda_error& reason, int32_t rank) {
  baracuda_error told{};
  told.status = status_of_others(reason.status);
  told.code = reason.code;
  told.rank = rank;
  told.step = reason.step;
  std::snprintf(told.call, sizeof(told.call), "ring");
  std::snprintf(told.message, sizeof(told.message), "rank %d ended the ring: %.63s: %.200s", rank,
                reason.call, reason.message);
  return told;
}

}  // namespace baracuda
