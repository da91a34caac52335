// The transport functions of an NCCL ring. Groups of several communicators nest on a thread, as in
// NCCL. Only the outermost group calls NCCL.
#include <chrono>
#include <mutex>
#include <thread>

#include "common/error.h"
#include "ring/exchange/nccl/comm.h"

namespace baracuda {

struct NcclGroup {
  int32_t depth = 0;
  baracuda_nccl_comm* comms = nullptr;
};

namespace {

using Lock = std::unique_lock<std::mutex>;

thread_local NcclGroup open_group;

template <typename F>
void for_each(const NcclGroup& group, F f) {
  for (baracuda_nccl_comm* comm = group.comms; comm != nullptr;) {
    baracuda_nccl_comm* const next = comm->next_in_group;
    f(*comm);
    comm = next;
  }
}

int32_t join_group(NcclGroup& group, baracuda_nccl_comm& comm) {
  const Lock lock(comm.mutex);
  const int32_t status = comm.refuse("ncclGroupStart");
  if (status != BARACUDA_OK) return status;
  if (comm.group == &group) return BARACUDA_OK;
  if (comm.group != nullptr) {
    fail(BARACUDA_INVALID_ARGUMENT, "ncclGroupStart",
         "communicator: got rank %d in use by another thread, must be used by one thread at a time",
         comm.rank);
    locate_failure(comm.rank, -1);
    return BARACUDA_INVALID_ARGUMENT;
  }
  comm.group = &group;
  comm.phase = NcclPhase::kInGroup;
  comm.next_in_group = group.comms;
  group.comms = &comm;
  return BARACUDA_OK;
}

// Closes the group. Unless failure is BARACUDA_OK, every communicator of the group fails with it.
// No call uses their handles afterwards, so they can be aborted.
void leave_group(NcclGroup& group, const baracuda_error& failure) {
  for_each(group, [&failure](baracuda_nccl_comm& comm) {
    if (failure.status != BARACUDA_OK) comm.mark_failed(failure);
    {
      const Lock lock(comm.mutex);
      comm.group = nullptr;
      comm.next_in_group = nullptr;
      comm.phase = NcclPhase::kIdle;
    }
    if (failure.status != BARACUDA_OK && comm.owned) watchdog_abort(comm);
  });
  group = NcclGroup();
}

int32_t group_start(void* context) {
  baracuda_nccl_comm& comm = *static_cast<baracuda_nccl_comm*>(context);
  NcclGroup& group = open_group;
  int32_t status = join_group(group, comm);
  if (status != BARACUDA_OK) return status;
  if (group.depth == 0) {
    status = check_nccl(nccl_api()->group_start(), "ncclGroupStart");
    if (status != BARACUDA_OK) {
      locate_comm(comm);
      const baracuda_error failure = *baracuda_last_error();
      leave_group(group, failure);
      return restore_failure(failure);
    }
  }
  ++group.depth;
  return BARACUDA_OK;
}

// A borrowed communicator may be non-blocking: ncclGroupEnd then returns before it is done.
int wait_while_in_progress(const NcclGroup& group, int result) {
  while (result == kNcclInProgress) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    result = kNcclSuccess;
    for_each(group, [&result](baracuda_nccl_comm& comm) {
      if (result != kNcclSuccess || comm.state != kHealthy) return;
      const int asked = nccl_api()->comm_get_async_error(comm.handle, &result);
      if (asked != kNcclSuccess) result = asked;
    });
  }
  return result;
}

int32_t group_end(void* context) {
  NcclGroup& group = open_group;
  if (group.depth == 0) {
    fail(BARACUDA_INVALID_ARGUMENT, "ncclGroupEnd", "no group is open");
    locate_failure(static_cast<baracuda_nccl_comm*>(context)->rank, -1);
    return BARACUDA_INVALID_ARGUMENT;
  }
  if (--group.depth > 0) return BARACUDA_OK;

  for_each(group, [](baracuda_nccl_comm& comm) { comm.enter_blocked(); });
  const int result = wait_while_in_progress(group, nccl_api()->group_end());
  // If a communicator has failed (in a send, by its deadline, by an abort), its failure caused
  // whatever NCCL reports now. So that failure is returned.
  baracuda_error failure{};
  for_each(group, [&failure](baracuda_nccl_comm& comm) {
    if (failure.status == BARACUDA_OK && comm.report_failure() != BARACUDA_OK) {
      failure = *baracuda_last_error();
    }
  });
  if (failure.status == BARACUDA_OK && check_nccl(result, "ncclGroupEnd") != BARACUDA_OK) {
    locate_comm(*group.comms);
    failure = *baracuda_last_error();
  }
  leave_group(group, failure);
  return failure.status == BARACUDA_OK ? BARACUDA_OK : restore_failure(failure);
}

// Runs one send or receive on comm's handle. Outside a group, it is a group by itself.
template <typename F>
int32_t enqueue(void* context, const char* call, int64_t bytes, F f) {
  baracuda_nccl_comm& comm = *static_cast<baracuda_nccl_comm*>(context);
  const bool alone = open_group.depth == 0;
  int32_t status = alone ? group_start(context) : BARACUDA_OK;
  if (status != BARACUDA_OK) return status;
  {
    const Lock lock(comm.mutex);
    status = comm.refuse(call);
    if (status == BARACUDA_OK && comm.group != &open_group) {
      status = fail(BARACUDA_INVALID_ARGUMENT, call,
                    "communicator: got rank %d outside the open group, must be in it", comm.rank);
    }
    if (status == BARACUDA_OK && bytes < 0) {
      status = fail(BARACUDA_INVALID_ARGUMENT, call, "bytes: got %lld, must be at least 0",
                    static_cast<long long>(bytes));
    }
    if (status == BARACUDA_OK) {
      const int result = f(*nccl_api(), comm.handle);
      if (result != kNcclInProgress) status = check_nccl(result, call);
      if (status != BARACUDA_OK) locate_comm(comm);
    }
  }
  if (status == BARACUDA_NCCL_ERROR) comm.mark_failed();
  if (!alone) return status;
  const baracuda_error failure = *baracuda_last_error();
  const int32_t ended = group_end(context);
  return status == BARACUDA_OK ? ended : restore_failure(failure);
}

int32_t send(void* context, const void* data, int64_t bytes, int32_t peer, void* stream) {
  return enqueue(context, "ncclSend", bytes, [=](const NcclApi& api, NcclComm* handle) {
    return api.send(data, static_cast<size_t>(bytes), kNcclUint8, peer, handle, stream);
  });
}

int32_t recv(void* context, void* data, int64_t bytes, int32_t peer, void* stream) {
  return enqueue(context, "ncclRecv", bytes, [=](const NcclApi& api, NcclComm* handle) {
    return api.recv(data, static_cast<size_t>(bytes), kNcclUint8, peer, handle, stream);
  });
}

void abort(void* context) { fail_comm(*static_cast<baracuda_nccl_comm*>(context)); }

}  // namespace

baracuda_transport nccl_transport(baracuda_nccl_comm& comm) {
  return {sizeof(baracuda_transport), &comm, comm.rank, comm.world_size, group_start, send, recv,
          group_end, abort};
}

}  // namespace baracuda
