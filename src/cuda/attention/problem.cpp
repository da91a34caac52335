#include "attention/problem.h"

#include <cmath>

#include "common/check_struct.h"
#include "common/error.h"

namespace baracuda {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

int32_t check_at_least(const char* call, const char* name, int64_t value, int64_t least) {
  if (value >= least) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call, "%s: got %lld, must be at least %lld", name,
              ll(value), ll(least));
}

// Whether the bytes of dk fit in 63 bits, and so every product of the extents of keys. dk may have
// the accumulator's type.
bool keys_fit(const StepParams& p) {
  int64_t bytes = 0;
  return !__builtin_mul_overflow(p.head_dim, accumulator_bytes(p.element), &bytes) &&
         !__builtin_mul_overflow(bytes, p.batch, &bytes) &&
         !__builtin_mul_overflow(bytes, p.key_len, &bytes) &&
         !__builtin_mul_overflow(bytes, p.kv_heads, &bytes);
}

int32_t check_extents(const char* call, const StepParams& p) {
  const struct {
    const char* name;
    int64_t value, least;
  } extents[] = {
      {"batch", p.batch, 0},         {"heads", p.heads, 0},
      {"kv_heads", p.kv_heads, 1},   {"query_len", p.query_len, 0},
      {"key_len", p.key_len, 0},     {"head_dim", p.head_dim, 1},
      {"sm_margin", p.sm_margin, 0}, {"window_left", p.window_left, 0},
      {"window_right", p.window_right, 0},
  };
  for (const auto& extent : extents) {
    const int32_t status = check_at_least(call, extent.name, extent.value, extent.least);
    if (status != BARACUDA_OK) return status;
  }
  if (p.heads % p.kv_heads != 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "heads: got %lld, must be a multiple of kv_heads, %lld", ll(p.heads),
                ll(p.kv_heads));
  }
  if (state_bytes(p) < 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "batch, heads, query_len, head_dim: got %lld, %lld, %lld, %lld, must keep the "
                "state below 2^63 bytes",
                ll(p.batch), ll(p.heads), ll(p.query_len), ll(p.head_dim));
  }
  if (!keys_fit(p)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "batch, kv_heads, key_len, head_dim: got %lld, %lld, %lld, %lld, must keep K below "
                "2^63 bytes in the accumulator's type",
                ll(p.batch), ll(p.kv_heads), ll(p.key_len), ll(p.head_dim));
  }
  return BARACUDA_OK;
}

int32_t check_reserved(const char* call, const StepParams& p) {
  const char* name = p.query_offset != 0       ? "query_offset"
                     : p.global_query_len != 0 ? "global_query_len"
                     : p.global_key_len != 0   ? "global_key_len"
                     : p.value_head_dim != 0   ? "value_head_dim"
                     : p.softcap != 0          ? "softcap"
                     : p.query_segments        ? "query_segments"
                     : p.key_segments          ? "key_segments"
                     : p.partial_out           ? "partial_out"
                                               : nullptr;
  if (name == nullptr) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, call, "%s: got a value, must be 0 (reserved)", name);
}

// Positions are between -2^62 and 2^62, both excluded: then the number of rows from one to another
// fits in 63 bits, as rows_at_or_before() needs.
constexpr int64_t position_limit = int64_t{1} << 62;

// Kernels subtract head and tail from positions even if no row is there.
int32_t check_start(const char* call, const char* map, const char* name, int64_t start) {
  if (start > -position_limit && start <= position_limit) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call,
              "%s.%s: got %lld, must be above -2^62 and at most 2^62, even if no row is there", map,
              name, ll(start));
}

// The last of `count` positions from start on; start if there are none. False: beyond 2^62.
bool find_last(int64_t start, int64_t stride, int64_t count, int64_t* last) {
  *last = start;
  if (count <= 0) return true;
  return !__builtin_mul_overflow(stride, count - 1, last) &&
         !__builtin_add_overflow(start, *last, last) && *last < position_limit;
}

int32_t check_map(const char* call, const char* name, const baracuda_position_map& map,
                  int64_t length) {
  if (map.stride < 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s.stride: got %lld, must be at least 1", name,
                ll(map.stride));
  }
  if (map.split < 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s.split: got %lld, must be at least 0", name,
                ll(map.split));
  }
  int32_t status = check_start(call, name, "head", map.head);
  if (status == BARACUDA_OK) status = check_start(call, name, "tail", map.tail);
  if (status != BARACUDA_OK) return status;
  const int64_t below = map.split < length ? map.split : length;
  int64_t last_of_head = 0;
  int64_t last = 0;
  if (!find_last(map.head, map.stride, below, &last_of_head) ||
      !find_last(map.tail, map.stride, length - below, &last)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "%s: got positions beyond 2^62, must be between -2^62 and 2^62", name);
  }
  if (below > 0 && below < length && map.tail <= last_of_head) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "%s.tail: got %lld, must be above the last position of the head, %lld", name,
                ll(map.tail), ll(last_of_head));
  }
  return BARACUDA_OK;
}

}  // namespace

int64_t accumulator_bytes(int32_t element) {
  return baracuda_element_bytes(element == BARACUDA_F64 ? BARACUDA_F64 : BARACUDA_F32);
}

int64_t state_bytes(const StepParams& p) {
  int64_t bytes = 0;
  if (__builtin_add_overflow(p.head_dim, int64_t(2), &bytes) ||
      __builtin_mul_overflow(bytes, accumulator_bytes(p.element), &bytes) ||
      __builtin_mul_overflow(bytes, p.batch, &bytes) ||
      __builtin_mul_overflow(bytes, p.heads, &bytes) ||
      __builtin_mul_overflow(bytes, p.query_len, &bytes)) {
    return -1;
  }
  return bytes;
}

int32_t check_problem(const char* call, const StepParams* params) {
  int32_t status = check_struct(call, "params", params);
  if (status != BARACUDA_OK) return status;
  const StepParams& p = *params;
  constexpr uint32_t known = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST | BARACUDA_STEP_CAUSAL |
                             BARACUDA_STEP_FOLLOWS;
  if ((p.flags & ~known) != 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "flags: got 0x%x, must be a combination of the bits 0x%x", p.flags, known);
  }
  if (baracuda_element_bytes(p.element) == 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "element: got %d, must be a baracuda_element, 0 to 3", p.element);
  }
  if (p.lse_element != BARACUDA_F32 && p.lse_element != p.element) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "lse_element: got %d, must be BARACUDA_F32 (%d) or element (%d)", p.lse_element,
                BARACUDA_F32, p.element);
  }
  status = check_extents(call, p);
  if (status != BARACUDA_OK) return status;
  if (!std::isfinite(p.scale)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "scale: got %g, must be finite", p.scale);
  }
  return check_reserved(call, p);
}

int32_t check_maps(const char* call, const StepParams& p, const baracuda_position_map& q_map,
                   const baracuda_position_map& k_map) {
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0 && p.window_left == 0 && p.window_right == 0)
    return BARACUDA_OK;
  const int32_t status = check_map(call, "q_map", q_map, p.query_len);
  return status == BARACUDA_OK ? check_map(call, "k_map", k_map, p.key_len) : status;
}

}  // namespace baracuda
