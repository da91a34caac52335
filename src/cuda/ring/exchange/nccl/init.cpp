// Making communicators: init, borrow, split, and the warm-up messages that connect NCCL's peers.
#include <sys/random.h>

#include <memory>
#include <new>
#include <string>
#include <vector>

#include "baracuda/runtime.h"
#include "common/error.h"
#include "ring/device_scope.h"
#include "ring/exchange/nccl/all_gather.h"
#include "ring/exchange/nccl/board.h"
#include "ring/exchange/nccl/comm.h"
#include "ring/exchange/nccl/interruptibly.h"
#include "runtime/scratch.h"

namespace baracuda {
namespace {

constexpr int64_t kWarmUpBytes = 6 * 64;

struct DestroyComm {
  void operator()(baracuda_nccl_comm* comm) const {
    // Keeps the error record of the earlier failure.
    const baracuda_error failure = *baracuda_last_error();
    baracuda_nccl_destroy(comm);
    restore_failure(failure);
  }
};
using CommPtr = std::unique_ptr<baracuda_nccl_comm, DestroyComm>;

NcclConfig config_for(int32_t max_ctas) {
  NcclConfig config;
  if (max_ctas > 0) config.max_ctas = max_ctas;
  // Turns clusters off. By default NCCL launches clusters of 4 blocks on Hopper. A cluster needs
  // free SMs in one GPC (a group of SMs), and those that a step's kernel leaves free may lie in
  // several GPCs. The cluster would then wait for the end of that kernel.
  config.cga_cluster_size = 0;
  return config;
}

int32_t check_device(const char* call, int32_t device) {
  if (device < -1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "device: got %d, must be an ordinal or -1",
                device);
  }
  if (device >= 0 && baracuda_cuda_stream_ops() == nullptr) {
    return fail(BARACUDA_UNAVAILABLE, call, "device: got %d, must be -1: this build has no CUDA",
                device);
  }
  return BARACUDA_OK;
}

// Makes a communicator without an NCCL handle and opens its endpoint. NULL, with an error record,
// if that fails.
CommPtr make_comm(const char* call, bool owned, int32_t rank, int32_t world_size, int32_t device,
                  int32_t max_ctas, const TimeLimit& limit) {
  CommPtr comm(new (std::nothrow) baracuda_nccl_comm);
  if (comm == nullptr) {
    fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for a communicator");
    return comm;
  }
  comm->owned = owned;
  comm->rank = rank;
  comm->world_size = world_size;
  comm->patience = limit.never() ? 0 : limit.seconds();
  baracuda_ring_endpoint& endpoint = comm->endpoint;
  endpoint.struct_size = sizeof(baracuda_ring_endpoint);
  endpoint.ops = device < 0 ? baracuda_host_stream_ops() : baracuda_cuda_stream_ops();
  endpoint.device = device;
  endpoint.max_ctas = max_ctas > 0 ? max_ctas : 0;
  endpoint.in_clusters = owned ? 0 : 1;  // the owner of a borrowed one may have allowed clusters
  endpoint.transport = nccl_transport(*comm);
  DeviceScope scope;
  int32_t status = scope.enter(*endpoint.ops, device);
  if (status == BARACUDA_OK) status = baracuda_ring_endpoint_open(&endpoint);
  if (status == BARACUDA_OK) status = scratch_allocate(device, kWarmUpBytes, &comm->scratch);
  if (status != BARACUDA_OK) comm.reset();
  return comm;
}

// Runs f, a call on comm's handle that may block. If the limit passes first, the watchdog aborts
// `target` to end f. target is comm or, if comm is borrowed, the child of the split: a borrowed
// communicator is never aborted.
template <typename F>
int32_t call_blocking(baracuda_nccl_comm& comm, baracuda_nccl_comm& target, const TimeLimit& limit,
                      const char* call, F f) {
  NcclDeadline deadline(target);
  int32_t status = watchdog_arm(deadline, limit, call);
  if (status != BARACUDA_OK) return status;
  int result = kNcclSuccess;
  const bool entered = comm.enter_blocked_if_healthy();
  const bool both = entered && (&target == &comm || target.enter_blocked_if_healthy());
  if (both) result = f(*nccl_api());
  if (entered) comm.leave_blocked();
  if (both && &target != &comm) target.leave_blocked();
  watchdog_disarm(deadline);
  status = target.report_failure();
  if (status == BARACUDA_OK) status = comm.report_failure();
  if (status != BARACUDA_OK) return status;
  status = check_nccl(result, call);
  if (status == BARACUDA_OK) return status;
  locate_failure(comm.rank, -1);
  comm.mark_failed();
  return status;
}

int32_t exchange_warm_up(CommPtr* comms, int32_t count) {
  baracuda_transport& outer = comms[0]->endpoint.transport;
  int32_t status = outer.group_start(outer.context);
  if (status != BARACUDA_OK) return status;
  for (int32_t i = 0; i < count && status == BARACUDA_OK; ++i) {
    status = baracuda_ring_warm_up(&comms[i]->endpoint, comms[i]->scratch);
  }
  const baracuda_error failure = *baracuda_last_error();
  const int32_t ended = outer.group_end(outer.context);
  return status == BARACUDA_OK ? ended : restore_failure(failure);
}

// NCCL connects peers in the first group that uses them, and blocks meanwhile. The warm-up messages
// make it do so now, under a deadline, and not in the first run.
int32_t warm_up(CommPtr* comms, int32_t count, const TimeLimit& limit) {
  int32_t status = BARACUDA_OK;
  for (int32_t i = 0; i < count && status == BARACUDA_OK; ++i) {
    status = watchdog_arm(comms[i]->run_deadline, limit, "warm-up exchange");
  }
  if (status == BARACUDA_OK) status = exchange_warm_up(comms, count);
  for (int32_t i = 0; i < count; ++i) {
    watchdog_disarm(comms[i]->run_deadline);
    // If the deadline passed first, the timeout is reported, and not the BARACUDA_ABORTED of a call
    // that was refused after it.
    if (status == BARACUDA_ABORTED) status = comms[i]->report_failure();
  }
  for (int32_t i = 0; i < count && status == BARACUDA_OK; ++i) {
    status = baracuda_nccl_synchronize(comms[i].get(), comms[i]->endpoint.ring_stream,
                                       limit.seconds_left());
  }
  for (int32_t i = 0; i < count && status == BARACUDA_OK; ++i) {
    scratch_free(comms[i]->endpoint.device, comms[i]->scratch);
    comms[i]->scratch = nullptr;
  }
  return status;
}

// Joins the ring's board (board.h), whose name is made from bytes that only the ring's ranks know.
// Each rank joins before it makes a call that returns only when all ranks have made it: the NCCL
// init or an all-gather. After that call all have joined, and the board's file name can be removed.
void join_board(baracuda_nccl_comm& comm, const void* secret, size_t bytes) {
  if (comm.world_size > 1) {
    comm.board = NcclBoard::join(board_name(secret, bytes), comm.rank, comm.world_size);
  }
}

void close_entry(const baracuda_nccl_comm& comm) {
  if (comm.board != nullptr) comm.board->close_entry();
}

// Gives a finished communicator to the caller. From now on the watchdog polls its board.
void hand_out(CommPtr& comm, baracuda_nccl_comm** out) {
  if (comm->board != nullptr) watchdog_poll(*comm);
  *out = comm.release();
}

// The ranks of a borrowed communicator have no common secret for the board's name. Rank 0 makes one
// and sends it to all. The second all-gather ends when all have joined.
int32_t agree_on_board(baracuda_nccl_comm& comm, const TimeLimit& limit) {
  if (comm.world_size == 1) return BARACUDA_OK;
  struct Secret {
    uint64_t words[4];
  } mine{};
  if (getrandom(&mine, sizeof(mine), 0) != sizeof(mine)) mine = {};
  std::vector<Secret> all(static_cast<size_t>(comm.world_size));
  int32_t status = nccl_all_gather(comm, &mine, sizeof(mine), all.data(), limit);
  if (status != BARACUDA_OK) return status;
  if (all[0].words[0] != 0) join_board(comm, &all[0], sizeof(Secret));
  status = nccl_all_gather(comm, &mine, sizeof(mine), all.data(), limit);
  close_entry(comm);
  return status;
}

// The part of init_all() that may block: all ranks join the ring.
int32_t join_all(std::vector<CommPtr>& comms, const int32_t* devices, int32_t max_ctas,
                 const TimeLimit& limit, const NcclUniqueId& id, const char* call) {
  const int32_t count = static_cast<int32_t>(comms.size());
  int32_t status = BARACUDA_OK;
  std::vector<std::unique_ptr<NcclDeadline>> deadlines(comms.size());
  for (size_t i = 0; i < comms.size(); ++i) {
    deadlines[i] = std::make_unique<NcclDeadline>(*comms[i]);
  }
  for (size_t i = 0; i < comms.size() && status == BARACUDA_OK; ++i) {
    status = watchdog_arm(*deadlines[i], limit, call);
  }
  if (status == BARACUDA_OK) {
    DeviceScope scope;
    bool entered = true;
    for (CommPtr& comm : comms) entered = comm->enter_blocked_if_healthy() && entered;
    // If a communicator has failed already, its failure is reported below.
    status = entered ? check_nccl(nccl_api()->group_start(), "ncclGroupStart") : BARACUDA_ABORTED;
    if (status == BARACUDA_OK) {
      for (size_t i = 0; i < comms.size() && status == BARACUDA_OK; ++i) {
        status = scope.enter(*comms[i]->endpoint.ops, devices[i]);
        if (status != BARACUDA_OK) break;
        NcclConfig config = config_for(max_ctas);
        status = check_nccl(nccl_api()->comm_init_rank_config(&comms[i]->handle, count, id,
                                                              static_cast<int32_t>(i), &config),
                            call);
        if (status != BARACUDA_OK) locate_failure(static_cast<int32_t>(i), -1);
      }
      const baracuda_error failure = *baracuda_last_error();
      const int32_t ended = check_nccl(nccl_api()->group_end(), "ncclGroupEnd");
      status = status == BARACUDA_OK ? ended : restore_failure(failure);
    }
    for (CommPtr& comm : comms) comm->leave_blocked();
  }
  for (auto& deadline : deadlines) watchdog_disarm(*deadline);
  for (CommPtr& comm : comms) {
    // If a deadline has passed, it caused NCCL's error and is reported in its place.
    const int32_t failed = comm->report_failure();
    if (failed != BARACUDA_OK) status = failed;
  }
  if (status != BARACUDA_OK) {
    for (CommPtr& comm : comms) comm->mark_failed();
    return status;
  }
  status = warm_up(comms.data(), count, limit);
  if (status != BARACUDA_OK) {
    // All of them fail, since what the others have enqueued may wait for the failed one.
    for (CommPtr& comm : comms) comm->mark_failed();
  }
  return status;
}

int32_t init_all(int32_t count, const int32_t* devices, int32_t max_ctas, const TimeLimit& limit,
                 baracuda_nccl_comm** out) {
  constexpr const char* call = "ncclCommInitRankConfig";
  NcclUniqueId id;
  int32_t status = check_nccl(nccl_api()->get_unique_id(&id), "ncclGetUniqueId");
  if (status != BARACUDA_OK) return status;
  std::vector<CommPtr> comms(static_cast<size_t>(count));
  for (size_t i = 0; i < comms.size(); ++i) {
    comms[i] = make_comm(call, true, static_cast<int32_t>(i), count, devices[i], max_ctas,
                         limit);
    if (comms[i] == nullptr) return baracuda_last_error()->status;
  }
  for (CommPtr& comm : comms) join_board(*comm, &id, sizeof(id));
  status = interruptibly(call, comms.data(), comms.size(), [&]() -> int32_t {
    try {
      return join_all(comms, devices, max_ctas, limit, id, call);
    } catch (const std::bad_alloc&) {
      return fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for %d communicators", count);
    }
  });
  close_entry(*comms[0]);
  for (size_t i = 0; i < comms.size() && status == BARACUDA_OK; ++i) hand_out(comms[i], &out[i]);
  return status;
}

int32_t query_ranks(NcclComm* handle, int32_t* rank, int32_t* world_size) {
  const int32_t status = check_nccl(nccl_api()->comm_count(handle, world_size), "ncclCommCount");
  if (status != BARACUDA_OK) return status;
  return check_nccl(nccl_api()->comm_user_rank(handle, rank), "ncclCommUserRank");
}

int32_t check_handle_device(NcclComm* handle, int32_t device) {
  if (device < 0 || nccl_api()->comm_cu_device == nullptr) return BARACUDA_OK;
  int found = device;
  const int32_t status =
      check_nccl(nccl_api()->comm_cu_device(handle, &found), "ncclCommCuDevice");
  if (status != BARACUDA_OK || found == device) return status;
  return fail(BARACUDA_INVALID_ARGUMENT, "baracuda_nccl_from_handle",
              "device: got %d, must be the communicator's, %d", device, found);
}

}  // namespace
}  // namespace baracuda

using namespace baracuda;

extern "C" {

int32_t baracuda_nccl_init_rank(int32_t world_size, const void* id, int32_t rank, int32_t device,
                                int32_t max_ctas, double timeout_seconds,
                                baracuda_nccl_comm** comm) {
  constexpr const char* call = "ncclCommInitRankConfig";
  *comm = nullptr;
  if (id == nullptr) return fail(BARACUDA_INVALID_ARGUMENT, call, "id: got NULL, must be given");
  if (world_size < 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "world_size: got %d, must be at least 1",
                world_size);
  }
  if (rank < 0 || rank >= world_size) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "rank: got %d, must be in [0, %d)", rank,
                world_size);
  }
  const NcclApi* api = require_nccl(call);
  if (api == nullptr) return BARACUDA_UNAVAILABLE;
  int32_t status = require_nccl_function(api->comm_init_rank_config != nullptr, call, "2.14");
  if (status == BARACUDA_OK) status = check_device(call, device);
  if (status != BARACUDA_OK) return status;

  const TimeLimit limit(timeout_seconds);
  CommPtr made = make_comm(call, true, rank, world_size, device, max_ctas, limit);
  if (made == nullptr) return baracuda_last_error()->status;
  join_board(*made, id, sizeof(NcclUniqueId));
  status = interruptibly(call, &made, 1, [&]() -> int32_t {
    const int32_t joined = call_blocking(*made, *made, limit, call, [&](const NcclApi& nccl) {
      NcclConfig config = config_for(max_ctas);
      return nccl.comm_init_rank_config(&made->handle, world_size,
                                        *static_cast<const NcclUniqueId*>(id), rank, &config);
    });
    close_entry(*made);
    return joined == BARACUDA_OK ? warm_up(&made, 1, limit) : joined;
  });
  // The work above may have failed before it called close_entry().
  if (status != BARACUDA_OK) close_entry(*made);
  if (status == BARACUDA_OK) hand_out(made, comm);
  return status;
}

int32_t baracuda_nccl_init_all(int32_t count, const int32_t* devices, int32_t max_ctas,
                               double timeout_seconds, baracuda_nccl_comm** comms) {
  constexpr const char* call = "baracuda_nccl_init_all";
  if (devices == nullptr || comms == nullptr) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "devices, comms: got NULL, must be given");
  }
  if (count < 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "count: got %d, must be at least 1", count);
  }
  for (int32_t i = 0; i < count; ++i) comms[i] = nullptr;
  const NcclApi* api = require_nccl(call);
  if (api == nullptr) return BARACUDA_UNAVAILABLE;
  int32_t status = require_nccl_function(api->comm_init_rank_config != nullptr,
                                         "ncclCommInitRankConfig", "2.14");
  for (int32_t i = 0; i < count && status == BARACUDA_OK; ++i) {
    status = check_device(call, devices[i]);
  }
  if (status != BARACUDA_OK) return status;
  try {
    return init_all(count, devices, max_ctas, TimeLimit(timeout_seconds), comms);
  } catch (const std::bad_alloc&) {
    return fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for %d communicators", count);
  }
}

int32_t baracuda_nccl_from_handle(void* handle, int32_t device, double timeout_seconds,
                                  baracuda_nccl_comm** comm) {
  constexpr const char* call = "baracuda_nccl_from_handle";
  *comm = nullptr;
  if (handle == nullptr) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "handle: got NULL, must be an ncclComm_t");
  }
  if (require_nccl(call) == nullptr) return BARACUDA_UNAVAILABLE;
  NcclComm* const borrowed = static_cast<NcclComm*>(handle);
  int32_t rank = 0;
  int32_t world_size = 0;
  int32_t status = check_device(call, device);
  if (status == BARACUDA_OK) status = query_ranks(borrowed, &rank, &world_size);
  if (status == BARACUDA_OK) status = check_handle_device(borrowed, device);
  if (status != BARACUDA_OK) return status;
  const TimeLimit limit(timeout_seconds);
  CommPtr made = make_comm(call, false, rank, world_size, device, 0, limit);
  if (made == nullptr) return baracuda_last_error()->status;
  made->handle = borrowed;
  status = warm_up(&made, 1, limit);
  if (status == BARACUDA_OK) status = agree_on_board(*made, limit);
  if (status == BARACUDA_OK) hand_out(made, comm);
  return status;
}

int32_t baracuda_nccl_split(baracuda_nccl_comm* comm, int32_t color, int32_t key,
                            double timeout_seconds, baracuda_nccl_comm** child) {
  constexpr const char* call = "ncclCommSplit";
  *child = nullptr;
  {
    const std::lock_guard<std::mutex> lock(comm->mutex);
    const int32_t refused = comm->refuse(call);
    if (refused != BARACUDA_OK) return refused;
  }
  int32_t status = require_nccl_function(nccl_api()->comm_split != nullptr, call, "2.18");
  if (status != BARACUDA_OK) return status;

  const TimeLimit limit(timeout_seconds);
  const baracuda_ring_endpoint& parent = comm->endpoint;
  // The child's own rank and world size are asked from NCCL after the split.
  CommPtr made = make_comm(call, true, comm->rank, comm->world_size, parent.device,
                           parent.max_ctas, limit);
  if (made == nullptr) return baracuda_last_error()->status;
  if (comm->board != nullptr && color >= 0) {
    const std::string name = comm->board->name() + "-" + std::to_string(comm->splits) + "-" +
                             std::to_string(color);
    made->board = NcclBoard::join(name, comm->rank, comm->world_size);
  }
  ++comm->splits;
  // An abort of the parent ends a split that blocks. A borrowed parent is not aborted.
  baracuda_nccl_comm& target = comm->owned ? *comm : *made;
  baracuda_nccl_comm* const targets[] = {&target};
  status = interruptibly(call, targets, 1, [&]() -> int32_t {
    return call_blocking(*comm, target, limit, call, [&](const NcclApi& nccl) {
      NcclConfig config = config_for(parent.max_ctas);
      return nccl.comm_split(comm->handle, color < 0 ? kNcclSplitNoColor : color, key,
                             &made->handle, &config);
    });
  });
  close_entry(*made);
  if (status != BARACUDA_OK) {
    const baracuda_error failure = *baracuda_last_error();
    // The parent's abort may still use the unfinished child. So the child's handle is leaked; it
    // might otherwise be freed twice.
    if (status != BARACUDA_NCCL_ERROR && comm->owned) made->handle = nullptr;
    made->mark_failed(failure);
    made.reset();
    if (comm->state != kHealthy) fail_comm(*comm);
    return restore_failure(failure);
  }
  if (made->handle == nullptr) return BARACUDA_OK;
  status = query_ranks(made->handle, &made->rank, &made->world_size);
  if (status != BARACUDA_OK) return status;
  made->endpoint.transport = nccl_transport(*made);
  status = interruptibly(call, &made, 1, [&] { return warm_up(&made, 1, limit); });
  if (status == BARACUDA_OK) hand_out(made, child);
  return status;
}

}  // extern "C"
