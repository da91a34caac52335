#include "ring/exchange/local/world.h"

#include <new>

#include "common/error.h"
#include "ring/check_endpoint.h"
#include "ring/device_scope.h"
#include "ring/exchange/local/group.h"

namespace {

using baracuda::fail;
using baracuda::LocalRank;
using baracuda::with_record;

// A rank's lists have room for this many messages in a group before they allocate.
constexpr size_t kReservedMessages = 16;

void destroy_events(LocalRank& rank) {
  if (rank.ops == nullptr) return;
  if (rank.ready != nullptr) rank.ops->event_destroy(rank.ready);
  if (rank.done != nullptr) rank.ops->event_destroy(rank.done);
  rank.ready = nullptr;
  rank.done = nullptr;
}

int32_t create_events(LocalRank& rank, const baracuda_ring_endpoint& endpoint) {
  const baracuda_stream_ops& ops = *endpoint.ops;
  baracuda::expect_record();
  baracuda::DeviceScope device;
  int32_t status = with_record(device.enter(ops, endpoint.device), "set_device");
  for (void** event : {&rank.ready, &rank.done}) {
    if (status == BARACUDA_OK) status = with_record(ops.event_create(event), "event_create");
  }
  return status;
}

int32_t check_given(const char* call, const char* name, const void* argument) {
  if (argument != nullptr) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call, "%s: got NULL, must be given", name);
}

// Checks what the functions of a local transport use.
int32_t check_local(const char* call, const baracuda_ring_endpoint* endpoint) {
  const int32_t status = baracuda::check_ops(call, endpoint);
  if (status != BARACUDA_OK) return status;
  const baracuda_stream_ops& ops = *endpoint->ops;
  return baracuda::check_functions(call, "endpoint->ops->",
                                   {{"record", ops.record != nullptr},
                                    {"wait", ops.wait != nullptr},
                                    {"copy", ops.copy != nullptr},
                                    {"event_create", ops.event_create != nullptr},
                                    {"event_destroy", ops.event_destroy != nullptr}});
}

}  // namespace

baracuda_local_world::baracuda_local_world(int32_t size, double timeout)
    : timeout_seconds(timeout), ranks(static_cast<size_t>(size)) {
  for (int32_t i = 0; i < size; ++i) {
    LocalRank& rank = ranks[static_cast<size_t>(i)];
    rank.world = this;
    rank.rank = i;
    rank.sends.reserve(kReservedMessages);
    rank.receives.reserve(kReservedMessages);
  }
}

void baracuda_local_world::abort_with(const baracuda_error& reason) {
  if (aborted) return;
  __atomic_store_n(&aborted, 1, __ATOMIC_RELAXED);
  abort_reason = reason;
  for (LocalRank& rank : ranks) rank.changed.notify_all();
}

int32_t baracuda_local_world::refuse(const char* call, int32_t rank) const {
  if (!aborted) return BARACUDA_OK;
  if (abort_reason.rank < 0) {
    fail(BARACUDA_ABORTED, call, "the local ring was aborted: %s", abort_reason.message);
  } else {
    fail(BARACUDA_ABORTED, call, "the local ring was aborted by rank %d: %s: %.200s",
         abort_reason.rank, abort_reason.call, abort_reason.message);
  }
  baracuda::locate_failure(rank, -1);
  return BARACUDA_ABORTED;
}

baracuda_local_world::Clock::time_point baracuda_local_world::deadline() const {
  constexpr double kLongest = 1e8;  // three years: beyond it the clock's arithmetic overflows
  if (!(timeout_seconds > 0 && timeout_seconds < kLongest)) return Clock::time_point::max();
  const std::chrono::duration<double> timeout(timeout_seconds);
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout);
}

extern "C" {

int32_t baracuda_local_world_create(int32_t world_size, double timeout_seconds,
                                    baracuda_local_world** world) {
  constexpr const char* call = "baracuda_local_world_create";
  const int32_t status = check_given(call, "world", world);
  if (status != BARACUDA_OK) return status;
  *world = nullptr;
  if (world_size < 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "world_size: got %d, must be at least 1",
                world_size);
  }
  try {
    *world = new baracuda_local_world(world_size, timeout_seconds);
  } catch (const std::bad_alloc&) {
    return fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for a world of %d ranks", world_size);
  }
  return BARACUDA_OK;
}

int32_t baracuda_local_world_abort(baracuda_local_world* world) {
  const int32_t status = check_given("baracuda_local_world_abort", "world", world);
  if (status != BARACUDA_OK) return status;
  const std::lock_guard<std::mutex> lock(world->mutex);
  world->abort_with({BARACUDA_ABORTED, 0, -1, -1, "baracuda_local_world_abort", "on request"});
  return BARACUDA_OK;
}

int32_t baracuda_local_world_destroy(baracuda_local_world* world) {
  if (world == nullptr) return BARACUDA_OK;
  {
    const std::lock_guard<std::mutex> lock(world->mutex);
    for (const LocalRank& rank : world->ranks) {
      if (rank.group == nullptr) continue;
      return fail(BARACUDA_INVALID_ARGUMENT, "baracuda_local_world_destroy",
                  "world: got one with rank %d in an open group, must be idle: abort it and let "
                  "its threads return first",
                  rank.rank);
    }
  }
  for (LocalRank& rank : world->ranks) destroy_events(rank);
  delete world;
  return BARACUDA_OK;
}

int32_t baracuda_local_transport(baracuda_local_world* world, int32_t rank,
                                 baracuda_ring_endpoint* endpoint) {
  constexpr const char* call = "baracuda_local_transport";
  int32_t status = check_given(call, "world", world);
  if (status != BARACUDA_OK) return status;
  const int32_t world_size = static_cast<int32_t>(world->ranks.size());
  if (rank < 0 || rank >= world_size) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "rank: got %d, must be in [0, %d)", rank,
                world_size);
  }
  status = check_local(call, endpoint);
  if (status != BARACUDA_OK) return status;
  const std::lock_guard<std::mutex> lock(world->mutex);
  for (const LocalRank& other : world->ranks) {
    if (other.rank != rank && other.ops != nullptr && other.ops != endpoint->ops) {
      return fail(BARACUDA_INVALID_ARGUMENT, call,
                  "endpoint->ops: got another table than rank %d has, must be one table for the "
                  "whole world",
                  other.rank);
    }
  }
  LocalRank& own = world->ranks[static_cast<size_t>(rank)];
  if (own.group != nullptr) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "rank: got %d in an open group, must be in none",
                rank);
  }
  destroy_events(own);
  own.ops = endpoint->ops;
  status = create_events(own, *endpoint);
  if (status != BARACUDA_OK) return status;
  endpoint->transport = {sizeof(baracuda_transport),
                         &own,
                         rank,
                         world_size,
                         baracuda::local_group_start,
                         baracuda::local_send,
                         baracuda::local_recv,
                         baracuda::local_group_end,
                         baracuda::local_abort};
  endpoint->stop = &world->aborted;
  return BARACUDA_OK;
}

}  // extern "C"
