// Calls into NCCL that a signal (Ctrl-C) ends.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/interrupt.h"
#include "ring/device_scope.h"
#include "ring/exchange/nccl/comm.h"

namespace baracuda {

// Runs work, which may block inside NCCL, while this thread checks for signals. A signal fails the
// communicators and aborts the owned ones, which ends the work. The device of the first
// communicator is current while the work runs.
template <typename Pointer, typename Work>
int32_t interruptibly(const char* call, const Pointer* comms, size_t count, Work work) {
  struct Context {
    const char* call;
    const Pointer* comms;
    size_t count;
    Work& work;
  } context{call, comms, count, work};
  const baracuda_ring_endpoint& endpoint = comms[0]->endpoint;
  DeviceScope scope;
  const int32_t entered = scope.enter(*endpoint.ops, endpoint.device);
  if (entered != BARACUDA_OK) return entered;
  const auto interrupted = [](void* given) {
    const Context& at = *static_cast<const Context*>(given);
    for (size_t i = 0; i < at.count; ++i) {
      baracuda_nccl_comm& comm = *at.comms[i];
      fail(BARACUDA_INTERRUPTED, at.call, "a signal came");
      locate_failure(comm.rank, -1);
      fail_comm(comm);
    }
  };
  const auto begin = [](void* given) -> int32_t {
    const Context& at = *static_cast<const Context*>(given);
    // Sets the device without restoring it: a new thread starts on device 0, and restoring that
    // would create a context there.
    const baracuda_ring_endpoint& end = at.comms[0]->endpoint;
    const int32_t status = end.device < 0 ? BARACUDA_OK : end.ops->set_device(end.device);
    return status == BARACUDA_OK ? at.work() : status;
  };
  return run_interruptibly(begin, interrupted, &context, call);
}

}  // namespace baracuda
