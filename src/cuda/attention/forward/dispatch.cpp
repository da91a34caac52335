// The attention entries of the C ABI: checks what every family needs, then calls one.
#include <cmath>

#include "attention/forward/family.h"
#include "common/error.h"
#include "attention/positions.h"

namespace baracuda {
namespace {

using Params = baracuda_attention_step_params;

const AttentionFamily* find_family(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_ATTENTION_HOST: return &host_family();
#if defined(BARACUDA_WITH_CUDA)
    case BARACUDA_ATTENTION_SIMT: return &simt_family();
    case BARACUDA_ATTENTION_SM80: return &sm80_family();
    case BARACUDA_ATTENTION_SM90A: return &sm90a_family();
#endif
    default: return nullptr;
  }
}

int32_t no_family(const char* call, int32_t kernel) {
  if (kernel < BARACUDA_ATTENTION_HOST || kernel > BARACUDA_ATTENTION_SM90A) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "kernel is %d: must be a baracuda_attention_kernel, 0 to 3", kernel);
  }
  static const char* const names[] = {"host", "simt", "sm80", "sm90a"};
  return fail(BARACUDA_UNAVAILABLE, call, "kernel %s is not in this build", names[kernel]);
}

int64_t element_bytes(int32_t element) {
  return element == BARACUDA_F64 ? 8 : element == BARACUDA_F32 ? 4 : 2;
}

long long ll(int64_t x) { return static_cast<long long>(x); }

int32_t check_at_least(const char* call, const char* name, int64_t value, int64_t least) {
  if (value >= least) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call, "%s is %lld: must be at least %lld", name,
              ll(value), ll(least));
}

int32_t check_map(const char* call, const char* name, const baracuda_position_map& map,
                  int64_t length) {
  if (map.stride < 1) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s.stride is %lld: must be at least 1", name,
                ll(map.stride));
  }
  if (map.split < 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s.split is %lld: must be at least 0", name,
                ll(map.split));
  }
  const int64_t below = map.split < length ? map.split : length;
  int64_t end = 0;
  int64_t end_of_tail = 0;
  if (__builtin_mul_overflow(map.stride, below, &end) ||
      __builtin_add_overflow(map.head, end, &end) ||
      __builtin_mul_overflow(map.stride, length - below, &end_of_tail) ||
      __builtin_add_overflow(map.tail, end_of_tail, &end_of_tail)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s must keep its positions below 2^63", name);
  }
  if (below > 0 && below < length && map.tail <= end - map.stride) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "%s.tail is %lld: must lie above the head's last position, %lld", name,
                ll(map.tail), ll(end - map.stride));
  }
  return BARACUDA_OK;
}

// One complaint; the checks below stop at the first.
#define BARACUDA_CHECK(expression)                                  \
  do {                                                              \
    const int32_t checked = (expression);                           \
    if (checked != BARACUDA_OK) return checked;                     \
  } while (0)

int32_t check_reserved(const char* call, const Params& p) {
  const char* name = p.query_offset != 0       ? "query_offset"
                     : p.global_query_len != 0 ? "global_query_len"
                     : p.global_key_len != 0   ? "global_key_len"
                     : p.value_head_dim != 0   ? "value_head_dim"
                     : p.window_left != 0      ? "window_left"
                     : p.window_right != 0     ? "window_right"
                     : p.softcap != 0          ? "softcap"
                     : p.query_segments        ? "query_segments"
                     : p.key_segments          ? "key_segments"
                     : p.partial_out           ? "partial_out"
                                               : nullptr;
  if (name == nullptr) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, call, "%s is set: it is reserved and must be zero", name);
}

// Everything but pointers and flags that concern them.
int32_t check_problem(const char* call, const Params* params) {
  if (params == nullptr) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "params is null");
  }
  const Params& p = *params;
  if (p.struct_size != sizeof(Params)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "struct_size is %llu: must be %llu",
                static_cast<unsigned long long>(p.struct_size),
                static_cast<unsigned long long>(sizeof(Params)));
  }
  constexpr uint32_t known = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST | BARACUDA_STEP_CAUSAL |
                             BARACUDA_STEP_FOLLOWS;
  if ((p.flags & ~known) != 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "flags is 0x%x: must be made of 0x%x", p.flags,
                known);
  }
  if (p.element < BARACUDA_F16 || p.element > BARACUDA_F64) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "element is %d: must be a baracuda_element, 0 to 3", p.element);
  }
  if (p.lse_element != BARACUDA_F32 && p.lse_element != p.element) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "lse_element is %d: must be BARACUDA_F32 (%d) or element (%d)", p.lse_element,
                BARACUDA_F32, p.element);
  }
  BARACUDA_CHECK(check_at_least(call, "batch", p.batch, 0));
  BARACUDA_CHECK(check_at_least(call, "heads", p.heads, 0));
  BARACUDA_CHECK(check_at_least(call, "kv_heads", p.kv_heads, 1));
  BARACUDA_CHECK(check_at_least(call, "query_len", p.query_len, 0));
  BARACUDA_CHECK(check_at_least(call, "key_len", p.key_len, 0));
  BARACUDA_CHECK(check_at_least(call, "head_dim", p.head_dim, 1));
  BARACUDA_CHECK(check_at_least(call, "sm_margin", p.sm_margin, 0));
  if (p.heads % p.kv_heads != 0) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "heads is %lld: must be a multiple of kv_heads, %lld", ll(p.heads),
                ll(p.kv_heads));
  }
  int64_t bytes = 0;
  if (__builtin_add_overflow(p.head_dim, int64_t(2), &bytes) ||
      __builtin_mul_overflow(bytes, int64_t(8), &bytes) ||
      __builtin_mul_overflow(bytes, p.batch, &bytes) ||
      __builtin_mul_overflow(bytes, p.heads, &bytes) ||
      __builtin_mul_overflow(bytes, p.query_len, &bytes)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "batch %lld, heads %lld, query_len %lld, head_dim %lld: the state must stay "
                "below 2^63 bytes",
                ll(p.batch), ll(p.heads), ll(p.query_len), ll(p.head_dim));
  }
  if (!std::isfinite(p.scale)) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "scale is %g: must be finite", p.scale);
  }
  return check_reserved(call, p);
}

int32_t check_maps(const char* call, const Params& p, const baracuda_position_map& q_map,
                   const baracuda_position_map& k_map) {
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0) return BARACUDA_OK;
  BARACUDA_CHECK(check_map(call, "q_map", q_map, p.query_len));
  return check_map(call, "k_map", k_map, p.key_len);
}

int32_t check_pointer(const char* call, const char* name, const void* pointer, int64_t alignment) {
  if (pointer == nullptr) {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s is null: this step needs it", name);
  }
  if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(alignment) != 0) {
    return fail(BARACUDA_MISALIGNED, call, "%s is %p: must be a multiple of %lld bytes", name,
                pointer, ll(alignment));
  }
  return BARACUDA_OK;
}

int32_t check_pointers(const char* call, const Params& p) {
  const int64_t bytes = element_bytes(p.element);
  const bool first = (p.flags & BARACUDA_STEP_FIRST) != 0;
  const bool last = (p.flags & BARACUDA_STEP_LAST) != 0;
  if (p.key_len > 0) {
    BARACUDA_CHECK(check_pointer(call, "q", p.q, bytes));
    BARACUDA_CHECK(check_pointer(call, "k", p.k, bytes));
    BARACUDA_CHECK(check_pointer(call, "v", p.v, bytes));
  }
  if (last) BARACUDA_CHECK(check_pointer(call, "y", p.y, bytes));
  if (last && p.lse != nullptr) {
    BARACUDA_CHECK(check_pointer(call, "lse", p.lse, element_bytes(p.lse_element)));
  }
  if (!(first && last)) {
    const int64_t alignment = p.element == BARACUDA_F64 ? 8 : 4;
    BARACUDA_CHECK(check_pointer(call, "state", p.state, alignment));
  }
  return BARACUDA_OK;
}

}  // namespace

int32_t attention_step_grid(int32_t kernel, const StepParams& params, StepGrid* grid) {
  constexpr const char* call = "baracuda_attention_step";
  *grid = {0, 0};
  const AttentionFamily* family = find_family(kernel);
  if (family == nullptr) return no_family(call, kernel);
  BARACUDA_CHECK(check_problem(call, &params));
  BARACUDA_CHECK(family->check(params));
  return family->grid(params, grid);
}

}  // namespace baracuda

extern "C" int32_t baracuda_attention_available(int32_t kernel) {
  return baracuda::find_family(kernel) != nullptr ? 1 : 0;
}

extern "C" int64_t baracuda_attention_state_bytes(int32_t kernel,
                                                  const baracuda_attention_step_params* params) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_state_bytes";
  const AttentionFamily* family = find_family(kernel);
  if (family == nullptr) {
    no_family(call, kernel);
    return -1;
  }
  if (check_problem(call, params) != BARACUDA_OK || family->check(*params) != BARACUDA_OK) {
    return -1;
  }
  constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  return (params->flags & whole) == whole ? 0 : family->state_bytes(*params);
}

extern "C" int32_t baracuda_attention_load(int32_t kernel,
                                           const baracuda_attention_step_params* params) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_load";
  const AttentionFamily* family = find_family(kernel);
  if (family == nullptr) return no_family(call, kernel);
  BARACUDA_CHECK(check_problem(call, params));
  BARACUDA_CHECK(family->check(*params));
  return family->load(*params);
}

extern "C" int32_t baracuda_attention_step(int32_t kernel,
                                           const baracuda_attention_step_params* params,
                                           void* stream) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_attention_step";
  const AttentionFamily* family = find_family(kernel);
  if (family == nullptr) return no_family(call, kernel);
  BARACUDA_CHECK(check_problem(call, params));
  const Params& p = *params;
  const bool empty = p.batch == 0 || p.heads == 0 || p.query_len == 0;
  if (p.device_maps == nullptr) {
    BARACUDA_CHECK(check_maps(call, p, p.q_map, p.k_map));
  } else if (kernel == BARACUDA_ATTENTION_HOST) {  // elsewhere they are out of reach
    BARACUDA_CHECK(check_maps(call, p, p.device_maps[0], p.device_maps[1]));
  }
  if (!empty) BARACUDA_CHECK(check_pointers(call, p));
  BARACUDA_CHECK(family->check(p));
  return empty ? BARACUDA_OK : family->step(p, stream);
}

extern "C" int64_t baracuda_visible_keys(const baracuda_attention_step_params* params,
                                         int64_t i) {
  using namespace baracuda;
  constexpr const char* call = "baracuda_visible_keys";
  if (check_problem(call, params) != BARACUDA_OK) return -1;
  const Params& p = *params;
  if (i < 0 || i >= p.query_len) {
    fail(BARACUDA_INVALID_ARGUMENT, call, "i is %lld: must be in [0, query_len), %lld", ll(i),
         ll(p.query_len));
    return -1;
  }
  if ((p.flags & BARACUDA_STEP_CAUSAL) == 0) return p.key_len;
  if (check_maps(call, p, p.q_map, p.k_map) != BARACUDA_OK) return -1;
  return visible_keys(p.k_map, p.key_len, position(p.q_map, i));
}
