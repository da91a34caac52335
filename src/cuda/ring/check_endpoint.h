// Checks an endpoint before a call uses it, and ends the ring after a call of one rank has failed.
#pragma once

#include <stdint.h>

#include <initializer_list>

#include "baracuda/exchange.h"

namespace baracuda {

// A function that a caller's table must have.
struct NamedFunction {
  const char* name;
  bool is_given;
};

// Refuses a table without one of the functions. `prefix` goes before its name in the message.
int32_t check_functions(const char* call, const char* prefix,
                        std::initializer_list<NamedFunction> functions);
// Checks the structs of the endpoint and its ops, and the functions that DeviceScope calls.
int32_t check_ops(const char* call, const baracuda_ring_endpoint* endpoint);
// Checks what the loop calls without a test for NULL.
int32_t check_exchange(const char* call, const baracuda_ring_exchange* exchange);
// The transport's functions.
int32_t check_messages(const char* call, const baracuda_transport& transport);
// check_ops(), and the transport. A rank alone may have a transport without functions.
int32_t check_endpoint(const char* call, const baracuda_ring_endpoint* endpoint);

// For a call of one rank that failed with `status` and left a record. Other ranks may wait for this
// one, so the transport is aborted if it can be. The endpoint may be one that was refused. Returns
// `status`.
int32_t end_ring(const baracuda_ring_endpoint* endpoint, int32_t status);

}  // namespace baracuda
