#include "attention/forward/families.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "common/error.h"

namespace baracuda {
namespace {

constexpr uint32_t f16_bit = 1u << BARACUDA_F16, bf16_bit = 1u << BARACUDA_BF16,
                   f32_bit = 1u << BARACUDA_F32, f64_bit = 1u << BARACUDA_F64;
constexpr int64_t any = INT64_MAX;
// Counted in 32 bits, to which a grid's blocks or warps are added before the end is seen.
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

// The shortest text that reads back as x, with a point or an exponent.
std::string shortest(double x) {
  char text[32];
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, x);
    if (std::strtod(text, nullptr) == x) break;
  }
  return std::strpbrk(text, ".en") == nullptr ? std::string(text) + ".0" : text;
}

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
  return "element " + (known ? element_names[element] : std::to_string(element)) +
         " is not one of " + names;
}

// A launch asks this, too: no text is made where the answer is yes.
std::string refused_head_dim(const FamilyFacts& family, int64_t head_dim) {
  const auto begin = std::begin(family.head_dims);
  const auto end = std::find(begin, std::end(family.head_dims), 0);
  if (begin == end) {
    if (head_dim >= 1 && head_dim <= family.max_head_dim) return "";
    return "head_dim " + std::to_string(head_dim) + " is not 1 to " +
           std::to_string(family.max_head_dim);
  }
  if (std::find(begin, end, head_dim) != end) return "";
  std::string dims;
  for (auto dim = begin; dim != end; ++dim) dims = joined(dims, " or ", std::to_string(*dim));
  return "head_dim " + std::to_string(head_dim) + " is not " + dims;
}

std::string refused_scale(const FamilyFacts& family, const StepParams& p) {
  const bool is_double = p.element == BARACUDA_F64 && !family.tensor_cores;
  if (family.positive_scale && !(p.scale > 0))
    return "scale " + shortest(p.scale) + " is not > 0, which its unscaled row maxima need";
  // As kernels take it in: times log2(e), for exponentials base 2.
  const double factor = p.scale * 1.4426950408889634;
  const bool fits = is_double ? std::isfinite(factor)
                              : std::isfinite(static_cast<float>(factor));
  // A smaller one than fits weighs all keys alike, which is right, where maxima are of its products.
  const bool vanishes = family.positive_scale && !std::isnormal(static_cast<float>(factor));
  if (fits && !vanishes) return "";
  return "scale " + shortest(p.scale) + " is beyond " + (is_double ? "float64" : "float32") +
         ", in which it scales";
}

std::string refused_size(const FamilyFacts& family, const StepParams& p) {
  const bool rows = p.query_len > family.max_query_len, keys = p.key_len > family.max_key_len;
  if (rows || keys) {
    const char* name = family.max_query_len == any ? "key_len" : "query_len or key_len";
    return std::string(name) + " is more than 2**30 rows a step";
  }
  if (family.max_tiles == any) return "";
  int64_t tiles = 0;
  if (__builtin_mul_overflow(p.batch, p.heads, &tiles) ||
      __builtin_mul_overflow(tiles, p.query_len / 64 + 1, &tiles)) {
    tiles = INT64_MAX;
  }
  if (tiles <= family.max_tiles) return "";
  return std::to_string(tiles) + " query tiles are more than it counts in 32 bits";
}

std::string refused_mask(const FamilyFacts& family, const StepParams& p) {
  if (family.windows || (p.window_left == 0 && p.window_right == 0)) return "";
  return std::string(p.window_left != 0 ? "window_left" : "window_right") +
         " is set, and it serves no windows";
}

// One operand: where it lies, and how it is stepped through.
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

  // A dimension of extent 1 is never stepped over, so its stride does not matter.
  int32_t stride(const char* name, const char* dimension, int64_t stride, int64_t extent,
                 int64_t element_bytes, bool input) const {
    if (extent <= 1) return BARACUDA_OK;
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
    return status;
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
