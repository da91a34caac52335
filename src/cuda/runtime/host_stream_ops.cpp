// Streams and events of the host: every operation is done when it returns, so there is nothing
// to record or to wait for, and the handles are NULL.
#include <cstddef>
#include <cstring>

#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace {

int32_t set_device(int32_t) { return BARACUDA_OK; }

int32_t get_device(int32_t* device) {
  *device = -1;
  return BARACUDA_OK;
}

int32_t record(void*, void*) { return BARACUDA_OK; }

int32_t wait(void*, void*) { return BARACUDA_OK; }

int32_t copy(void* dst, const void* src, int64_t bytes, void*) {
  std::memmove(dst, src, static_cast<size_t>(bytes));
  return BARACUDA_OK;
}

int32_t create_event(void** event) {
  *event = nullptr;
  return BARACUDA_OK;
}

int32_t create_stream(void** stream, int32_t) {
  *stream = nullptr;
  return BARACUDA_OK;
}

// Destroying and synchronising alike: there is nothing to do.
int32_t nothing(void*) { return BARACUDA_OK; }

const baracuda_stream_ops host_ops = {
    sizeof(baracuda_stream_ops),
    set_device,
    record,
    wait,
    copy,
    baracuda_attention_step,
    create_event,
    nothing,
    create_stream,
    nothing,
    get_device,
    nothing,
};

}  // namespace

extern "C" const baracuda_stream_ops* baracuda_host_stream_ops(void) { return &host_ops; }
