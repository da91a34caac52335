// Streams and events of the host. Every operation is done when it returns, so there is nothing to
// wait for. All handles are NULL except timed events, which hold the time of their recording.
#include <chrono>
#include <cstddef>
#include <cstring>
#include <new>

#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace {

using Clock = std::chrono::steady_clock;

struct TimedEvent {
  Clock::time_point at{};
};

int32_t set_device(int32_t) { return BARACUDA_OK; }

int32_t get_device(int32_t* device) {
  *device = -1;
  return BARACUDA_OK;
}

int32_t record(void* event, void*) {
  if (event != nullptr) static_cast<TimedEvent*>(event)->at = Clock::now();
  return BARACUDA_OK;
}

int32_t wait(void*, void*) { return BARACUDA_OK; }

int32_t copy(void* dst, const void* src, int64_t bytes, void*) {
  std::memmove(dst, src, static_cast<size_t>(bytes));
  return BARACUDA_OK;
}

int32_t clear(void* dst, int64_t bytes, void*) {
  std::memset(dst, 0, static_cast<size_t>(bytes));
  return BARACUDA_OK;
}

int32_t create_event(void** event) {
  *event = nullptr;
  return BARACUDA_OK;
}

int32_t create_timed_event(void** event) {
  *event = new (std::nothrow) TimedEvent;
  if (*event != nullptr) return BARACUDA_OK;
  return baracuda::fail(BARACUDA_OUT_OF_MEMORY, "timed_event_create", "no memory for an event");
}

int32_t destroy_event(void* event) {
  delete static_cast<TimedEvent*>(event);
  return BARACUDA_OK;
}

int32_t elapsed(void* from, void* to, float* milliseconds) {
  const std::chrono::duration<float, std::milli> time =
      static_cast<TimedEvent*>(to)->at - static_cast<TimedEvent*>(from)->at;
  *milliseconds = time.count();
  return BARACUDA_OK;
}

int32_t create_stream(void** stream, int32_t) {
  *stream = nullptr;
  return BARACUDA_OK;
}

// For destroying and synchronising: there is nothing to do.
int32_t nothing(void*) { return BARACUDA_OK; }

const baracuda_stream_ops host_ops = {
    sizeof(baracuda_stream_ops),
    set_device,
    get_device,
    record,
    wait,
    copy,
    clear,
    create_event,
    destroy_event,
    create_stream,
    nothing,
    nothing,
    create_timed_event,
    elapsed,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

extern "C" const baracuda_stream_ops* baracuda_host_stream_ops(void) { return &host_ops; }
