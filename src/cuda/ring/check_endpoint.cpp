#include "ring/check_endpoint.h"

#include "baracuda/status.h"
#include "common/check_struct.h"
#include "common/error.h"

namespace baracuda {

int32_t check_functions(const char* call, const char* prefix,
                        std::initializer_list<NamedFunction> functions) {
  for (const NamedFunction& function : functions) {
    if (function.is_given) continue;
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s%s: got NULL, must be given", prefix,
                function.name);
  }
  return BARACUDA_OK;
}

int32_t check_ops(const char* call, const baracuda_ring_endpoint* endpoint) {
  int32_t status = check_struct(call, "endpoint", endpoint);
  if (status == BARACUDA_OK) status = check_struct(call, "endpoint->ops", endpoint->ops);
  if (status != BARACUDA_OK || endpoint->device < 0) return status;
  const baracuda_stream_ops& ops = *endpoint->ops;
  return check_functions(call, "endpoint->ops->",
                         {{"set_device", ops.set_device != nullptr},
                          {"get_device", ops.get_device != nullptr}});
}

int32_t check_exchange(const char* call, const baracuda_ring_exchange* exchange) {
  const int32_t status = check_struct(call, "endpoint->exchange", exchange);
  if (status != BARACUDA_OK) return status;
  return check_functions(call, "endpoint->exchange->",
                         {{"grant", exchange->grant != nullptr},
                          {"open", exchange->open != nullptr},
                          {"post", exchange->post != nullptr},
                          {"close", exchange->close != nullptr},
                          {"complete", exchange->complete != nullptr},
                          {"wait", exchange->wait != nullptr},
                          {"join", exchange->join != nullptr}});
}

int32_t check_messages(const char* call, const baracuda_transport& transport) {
  return check_functions(call, "transport.",
                         {{"group_start", transport.group_start != nullptr},
                          {"send", transport.send != nullptr},
                          {"recv", transport.recv != nullptr},
                          {"group_end", transport.group_end != nullptr}});
}

int32_t check_endpoint(const char* call, const baracuda_ring_endpoint* endpoint) {
  int32_t status = check_ops(call, endpoint);
  if (status == BARACUDA_OK) status = check_struct(call, "transport", &endpoint->transport);
  if (status != BARACUDA_OK) return status;
  const baracuda_transport& transport = endpoint->transport;
  if (transport.world_size < 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "transport.world_size: got %d, must be at least 1", transport.world_size);
  }
  if (transport.rank < 0 || transport.rank >= transport.world_size) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "transport.rank: got %d, must be in [0, %d)",
                transport.rank, transport.world_size);
  }
  return transport.world_size > 1 ? check_messages(call, transport) : BARACUDA_OK;
}

int32_t end_ring(const baracuda_ring_endpoint* endpoint, int32_t status) {
  if (endpoint == nullptr || endpoint->struct_size != sizeof(*endpoint)) return status;
  const baracuda_transport& transport = endpoint->transport;
  if (transport.struct_size != sizeof(transport)) return status;
  baracuda_error failure = *baracuda_last_error();
  if (failure.rank < 0) failure.rank = transport.rank;
  restore_failure(failure);
  if (transport.abort == nullptr || transport.world_size == 1) return status;
  transport.abort(transport.context);
  restore_failure(failure);  // abort may have overwritten it
  return status;
}

}  // namespace baracuda
