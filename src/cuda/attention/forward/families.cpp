#include "attention/forward/families.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "attention/reach.h"
#include "common/error.h"

namespace baracuda {
namespace {

constexpr uint32_t f16_bit = 1u << BARACUDA_F16, bf16_bit = 1u << BARACUDA_BF16,
                   f32_bit = 1u << BARACUDA_F32, f64_bit = 1u << BARACUDA_F64;
constexpr int64_t any = INT64_MAX;
// Tiles are counted in 32 bits. A counter may pass the end by the blocks or warps of a grid.
constexpr int64_t most_tiles = INT32_MAX - 4095;
constexpr int64_t most_rows = int64_t{1} << 30;

constexpr FamilyFacts host = {
    "host", 0, 0, f16_bit | bf16_bit | f32_bit | f64_bit, false,
    1024, {}, false, any, any, any, false, 0, 0};
constexpr FamilyFacts simt = {
    "simt", 80, 999, f16_bit | bf16_bit | f32_bit | f64_bit, false,
    256, {}, false, any, any, any, false, 0, 0};
constexpr FamilyFacts sm80 = {
    "sm80", 80, 999, f16_bit | bf16_bit, true,
    256, {64, 96, 128, 192, 256}, true, any, most_rows, any, false, 16, 0};
constexpr FamilyFacts sm90a = {
    "sm90a", 90, 90, f16_bit | bf16_bit, true,
    256, {64, 128, 256}, true, most_rows, most_rows, most_tiles, false, 16, int64_t{1} << 40};

// By enum baracuda_element.
constexpr const char* element_names[] = {"F16", "BF16", "F32", "F64"};

std::string joined(const std::string& list, const char* separator, const std::string& item) {
  return list.empty() ? item : list + separator + item;
}

std::string refused_element(const FamilyFacts& family, int32_t element) {
  const bool known = baracuda_element_bytes(element) > 0;
  if (known && (family.elements >> element & 1) != 0) return "";
  std::string names;
  for (int32_t e = BARACUDA_F16; e <= BARACUDA_F64; ++e) {
    if ((family.elements >> e & 1) != 0) names = joined(names, ", ", element_names[e]);
  }
  return "element: got " + (known ? element_names[element] : std::to_string(element)) +
         ", must be one of " + names;
}

// Every launch calls this. It makes no text unless it refuses.
std::string refused_head_dim(const FamilyFacts& family, int64_t head_dim) {
  const auto begin = std::begin(family.head_dims);
  const auto end = std::find(begin, std::end(family.head_dims), 0);
  if (begin == end) {
    if (head_dim >= 1 && head_dim <= family.max_head_dim) return "";
    return "head_dim: got " + std::to_string(head_dim) + ", must be 1 to " +
           std::to_string(family.max_head_dim);
  }
  if (std::find(begin, end, head_dim) != end) return "";
  std::string dims;
  for (auto dim = begin; dim != end; ++dim) dims = joined(dims, ", ", std::to_string(*dim));
  return "head_dim: got " + std::to_string(head_dim) + ", must be one of " + dims;
}

std::string refused_scale(const FamilyFacts& family, const StepParams& p) {
  const bool is_double = p.element == BARACUDA_F64 && !family.tensor_cores;
  // A family with positive_scale takes row maxima before it scales.
  if (family.positive_scale && !(p.scale > 0))
    return "scale: got " + shortest(p.scale) + ", must be > 0";
  // Kernels use scale * log2(e), for exponentials base 2.
  const double factor = p.scale * 1.4426950408889634;
  const bool fits = is_double ? std::isfinite(factor)
                              : std::isfinite(static_cast<float>(factor));
  // A factor that rounds to 0 gives all keys the same weight. That is right unless the family
  // scales after it has taken the maxima.
  const bool vanishes = family.positive_scale && !std::isnormal(static_cast<float>(factor));
  if (fits && !vanishes) return "";
  return "scale: got " + shortest(p.scale) + ", must be in the range of " +
         (is_double ? "float64" : "float32");
}

std::string refused_length(const char* name, int64_t length) {
  return std::string(name) + ": got " + std::to_string(length) +
         ", must be at most 2**30 in one step";
}

std::string refused_size(const FamilyFacts& family, const StepParams& p) {
  if (p.query_len > family.max_query_len) return refused_length("query_len", p.query_len);
  if (p.key_len > family.max_key_len) return refused_length("key_len", p.key_len);
  if (family.max_tiles == any) return "";
  return refused_tiles(family, "batch, heads, query_len", "query", p.batch, p.heads, p.query_len,
                       64);
}

std::string refused_mask(const FamilyFacts& family, const StepParams& p) {
  if (family.windows || (p.window_left == 0 && p.window_right == 0)) return "";
  const bool left = p.window_left != 0;
  return std::string(left ? "window_left" : "window_right") + ": got " +
         std::to_string(left ? p.window_left : p.window_right) + ", must be 0";
}

// Checks an operand's address and strides.
class OperandCheck {
 public:
  OperandCheck(const char* call, const FamilyFacts& family) : call_(call), family_(family) {}

  int32_t address(const char* name, const void* pointer, int64_t bytes) const {
    if (pointer == nullptr)
      return fail(BARACUDA_INVALID_ARGUMENT, call_, "%s: got NULL, must be given to this step",
                  name);
    if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0)
      return BARACUDA_OK;
    return fail(BARACUDA_MISALIGNED, call_,
                "%s: got address %p, must for the %s kernel be a multiple of %lld bytes", name,
                pointer, family_.name, static_cast<long long>(bytes));
  }

  // The stride of a dimension of extent 1 is never used, so it may be anything.
  int32_t stride(const char* name, const char* dimension, int64_t stride, int64_t extent,
                 int64_t element_bytes, bool input) const {
    if (extent <= 1) return BARACUDA_OK;
    if (!input && stride == 0) {
      return fail(BARACUDA_INVALID_ARGUMENT, call_,
                  "%s: got a %s stride of 0, must not be 0: each of its elements is written", name,
                  dimension);
    }
    if (family_.vector_bytes > 0 && stride % (family_.vector_bytes / element_bytes) != 0) {
      return fail(BARACUDA_MISALIGNED, call_,
                  "%s: got a %s stride of %lld elements, must for the %s kernel be a multiple of "
                  "%lld",
                  name, dimension, static_cast<long long>(stride), family_.name,
                  static_cast<long long>(family_.vector_bytes / element_bytes));
    }
    const int64_t limit = family_.max_stride_bytes / element_bytes;
    if (limit > 0 && input && (stride < 0 || stride >= limit)) {
      return fail(BARACUDA_UNSUPPORTED, call_,
                  "%s: got a %s stride of %lld elements, must for the %s kernel be 0 to %lld", name,
                  dimension, static_cast<long long>(stride), family_.name,
                  static_cast<long long>(limit - 1));
    }
    return BARACUDA_OK;
  }

  int32_t tensor(const char* name, const void* pointer, const baracuda_strides& strides,
                 const StepParams& p, int64_t heads, int64_t length, bool input) const {
    return tensor(name, pointer, strides, p, heads, length, p.element, input);
  }
  int32_t tensor(const char* name, const void* pointer, const baracuda_strides& strides,
                 const StepParams& p, int64_t heads, int64_t length, int32_t element,
                 bool input) const {
    const int64_t bytes = baracuda_element_bytes(element);
    int32_t status = address(name, pointer, std::max<int64_t>(family_.vector_bytes, bytes));
    if (status == BARACUDA_OK) status = stride(name, "batch", strides.batch, p.batch, bytes, input);
    if (status == BARACUDA_OK) status = stride(name, "head", strides.head, heads, bytes, input);
    if (status == BARACUDA_OK) status = stride(name, "sequence", strides.seq, length, bytes, input);
    if (status != BARACUDA_OK) return status;
    return check_reach(call_, name, strides, p, heads, length, p.head_dim, bytes);
  }

 private:
  const char* const call_;
  const FamilyFacts& family_;
};

}  // namespace

const FamilyFacts* find_facts(int32_t kernel) {
  switch (kernel) {
    case BARACUDA_ATTENTION_HOST: return &host;
    case BARACUDA_ATTENTION_SIMT: return &simt;
    case BARACUDA_ATTENTION_SM80: return &sm80;
    case BARACUDA_ATTENTION_SM90A: return &sm90a;
    default: return nullptr;
  }
}

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

std::string refused_tiles(const FamilyFacts& family, const char* names, const char* kind,
                          int64_t batch, int64_t heads, int64_t length, int64_t tile) {
  int64_t tiles = 0;
  if (__builtin_mul_overflow(batch, heads, &tiles) ||
      __builtin_mul_overflow(tiles, length / tile + 1, &tiles)) {
    tiles = INT64_MAX;
  }
  if (tiles <= family.max_tiles) return "";
  return std::string(names) + ": got " + std::to_string(tiles) + " " + kind +
         " tiles, must be at most " + std::to_string(family.max_tiles);
}

std::string shortest(double x) {
  char text[32];
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, x);
    if (std::strtod(text, nullptr) == x) break;
  }
  return std::strpbrk(text, ".en") == nullptr ? std::string(text) + ".0" : text;
}

std::string refusal(const FamilyFacts& family, const StepParams& p) {
  std::string reason = refused_element(family, p.element);
  if (reason.empty()) reason = refused_head_dim(family, p.head_dim);
  if (reason.empty()) reason = refused_scale(family, p);
  if (reason.empty()) reason = refused_size(family, p);
  if (reason.empty()) reason = refused_mask(family, p);
  return reason;
}

int32_t check_served(const char* call, const FamilyFacts& family, const StepParams& p) {
  const std::string reason = refusal(family, p);
  if (reason.empty()) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, call, "the %s kernel: %s", family.name, reason.c_str());
}

int32_t check_operand(const char* call, const FamilyFacts& family, const char* name,
                      const void* pointer, const baracuda_strides& strides, const StepParams& p,
                      int64_t heads, int64_t length, int32_t element, bool input) {
  return OperandCheck(call, family)
      .tensor(name, pointer, strides, p, heads, length, element, input);
}

int32_t check_operands(const char* call, const FamilyFacts& family, const StepParams& p) {
  const OperandCheck check(call, family);
  const bool first = (p.flags & BARACUDA_STEP_FIRST) != 0;
  const bool last = (p.flags & BARACUDA_STEP_LAST) != 0;
  int32_t status = BARACUDA_OK;
  // Without keys the inputs may be null.
  if (p.key_len > 0 || p.q != nullptr)
    status = check.tensor("q", p.q, p.q_strides, p, p.heads, p.query_len, true);
  if (p.key_len > 0) {
    if (status == BARACUDA_OK)
      status = check.tensor("k", p.k, p.k_strides, p, p.kv_heads, p.key_len, true);
    if (status == BARACUDA_OK)
      status = check.tensor("v", p.v, p.v_strides, p, p.kv_heads, p.key_len, true);
  }
  if (status == BARACUDA_OK && last)
    status = check.tensor("y", p.y, p.y_strides, p, p.heads, p.query_len, false);
  if (status == BARACUDA_OK && last && p.lse != nullptr)
    status = check.address("lse", p.lse, baracuda_element_bytes(p.lse_element));
  if (status == BARACUDA_OK && !(first && last)) {
    status = check.address("state", p.state, std::max<int64_t>(family.vector_bytes,
                                                               accumulator_bytes(p.element)));
  }
  return status;
}

}  // namespace baracuda
