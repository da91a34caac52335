#include "interop/xla_call.h"

#include <cstdio>
#include <cstring>

#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "ring/margin.h"

namespace baracuda {
namespace xla {
namespace {

int32_t error_code(int32_t status) {
  switch (status) {
    case BARACUDA_INVALID_ARGUMENT:
    case BARACUDA_MISALIGNED: return kInvalidArgument;
    case BARACUDA_UNSUPPORTED:
    case BARACUDA_UNAVAILABLE: return kUnimplemented;
    case BARACUDA_OUT_OF_MEMORY: return kResourceExhausted;
    default: return kInternal;
  }
}

// The thread's last failure, as an XLA error.
void* to_error(const CallFrame& frame, int32_t status) {
  const baracuda_error* error = baracuda_last_error();
  char text[sizeof(error->call) + sizeof(error->message) + 2];
  std::snprintf(text, sizeof(text), "%s: %s", error->call, error->message);
  ErrorCreateArgs args = {sizeof(args), nullptr, text, error_code(status)};
  return frame.api->error_create(&args);
}

// Before it registers a handler, XLA asks for the handler's version this way. This code works with
// every 0.x from 0.1 on, so an older runtime gets its own version as the answer.
bool answered_metadata(const CallFrame& frame) {
  const Extension* extension = frame.extensions;
  if (extension == nullptr || extension->type != kMetadata) return false;
  Metadata* metadata = reinterpret_cast<const MetadataExtension*>(extension)->metadata;
  const int32_t theirs = frame.api != nullptr ? frame.api->api_version.minor_version
                                              : kMinorVersion;
  metadata->api_version = {sizeof(ApiVersion), nullptr, kMajorVersion,
                           theirs < kMinorVersion ? theirs : kMinorVersion};
  metadata->traits = kCommandBufferCompatible;
  return true;
}

const Scalar* find_scalar(const Attributes& attributes, const char* name, int32_t dtype) {
  for (int64_t i = 0; i < attributes.size; ++i) {
    const Text& text = *attributes.names[i];
    if (text.size != std::strlen(name) || std::memcmp(text.data, name, text.size) != 0) continue;
    const Scalar* scalar = static_cast<const Scalar*>(attributes.values[i]);
    return attributes.types[i] == kScalar && scalar->dtype == dtype ? scalar : nullptr;
  }
  return nullptr;
}

template <typename T>
int32_t read_scalar(const Attributes& attributes, const char* name, int32_t dtype, T& value) {
  const Scalar* scalar = find_scalar(attributes, name, dtype);
  if (scalar == nullptr) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "attribute %s: got none of its type, must be a 64-bit %s", name,
                dtype == kF64 ? "float" : "integer");
  }
  value = *static_cast<const T*>(scalar->value);
  return BARACUDA_OK;
}

int32_t element_of(const Buffer& buffer, int32_t& element) {
  element = find_element(buffer);
  if (element >= 0) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, kCall,
              "q: got XLA data type %d, must be f16, bf16, f32 or f64", buffer.dtype);
}

}  // namespace

int32_t read_integers(const Attributes& attributes, std::initializer_list<Integer> integers) {
  for (const Integer& integer : integers) {
    const int32_t status = read_scalar(attributes, integer.name, kS64, *integer.value);
    if (status != BARACUDA_OK) return status;
  }
  return BARACUDA_OK;
}

int32_t read_float(const Attributes& attributes, const char* name, double& value) {
  return read_scalar(attributes, name, kF64, value);
}

int32_t check_sequence_dim(int64_t sequence_dim) {
  if (sequence_dim == 1 || sequence_dim == 2) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, kCall, "sequence_dim: got %lld, must be 1 or 2",
              static_cast<long long>(sequence_dim));
}

int32_t find_element(const Buffer& buffer) {
  switch (buffer.dtype) {
    case kF16: return BARACUDA_F16;
    case kBF16: return BARACUDA_BF16;
    case kF32: return BARACUDA_F32;
    case kF64: return BARACUDA_F64;
    default: return -1;
  }
}

int64_t bytes_of(const Buffer& buffer) {
  int64_t bytes = baracuda_element_bytes(find_element(buffer));
  for (int64_t i = 0; i < buffer.rank; ++i) bytes *= buffer.dims[i];
  return bytes;
}

baracuda_strides dense_strides(const Buffer& buffer, int64_t sequence_dim) {
  const int64_t inner = buffer.dims[3];
  const int64_t outer = buffer.dims[2] * inner;
  const int64_t batch = buffer.dims[1] * outer;
  return sequence_dim == 2 ? baracuda_strides{batch, outer, inner}
                           : baracuda_strides{batch, inner, outer};
}

int32_t check_same(const char* name, const Buffer& buffer, const Buffer& like,
                   const char* like_name) {
  if (buffer.dtype == like.dtype &&
      std::memcmp(buffer.dims, like.dims, 4 * sizeof(int64_t)) == 0) {
    return BARACUDA_OK;
  }
  return fail(BARACUDA_INVALID_ARGUMENT, kCall,
              "%s: got another shape or type, must have those of %s", name, like_name);
}

int32_t check_rows(const char* name, const Buffer& buffer, const StepParams& step) {
  const bool wide = step.element == BARACUDA_F64;
  const int64_t bytes = accumulator_bytes(step.element) * step.batch * step.heads * step.query_len;
  if (buffer.dtype == (wide ? kF64 : kF32) && bytes_of(buffer) == bytes) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, kCall,
              "%s: got another shape or type, must be %s [B, H, Q]", name, wide ? "f64" : "f32");
}

int32_t bind_problem(Buffers& operands, int64_t sequence_dim, StepParams& step) {
  const Buffer *q = nullptr, *k = nullptr, *v = nullptr;
  int32_t status = operands.next("q", 4, q);
  if (status == BARACUDA_OK) status = operands.next("k", 4, k);
  if (status == BARACUDA_OK) status = operands.next("v", 4, v);
  if (status == BARACUDA_OK) status = element_of(*q, step.element);
  if (status == BARACUDA_OK) status = check_same("v", *v, *k, "k");
  if (status != BARACUDA_OK) return status;
  if (k->dtype != q->dtype || k->dims[0] != q->dims[0] || k->dims[3] != q->dims[3]) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "k: got another batch, head_dim or type, must have those of q");
  }
  const int64_t head = 3 - sequence_dim;
  step.batch = q->dims[0];
  step.heads = q->dims[head];
  step.query_len = q->dims[sequence_dim];
  step.head_dim = q->dims[3];
  step.kv_heads = k->dims[head];
  step.key_len = k->dims[sequence_dim];
  step.q = q->data;
  step.k = k->data;
  step.v = v->data;
  step.q_strides = step.y_strides = dense_strides(*q, sequence_dim);
  step.k_strides = step.v_strides = dense_strides(*k, sequence_dim);
  return BARACUDA_OK;
}

int32_t bind_maps(Buffers& operands, StepParams& step) {
  const Buffer* maps = nullptr;
  const int32_t status = operands.next("maps", 1, maps);
  if (status != BARACUDA_OK) return status;
  constexpr int64_t words = 2 * sizeof(baracuda_position_map) / 4;
  if (maps->dims[0] != words || maps->dtype != kU32) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "maps: got %lld elements of XLA's type %d, must be %lld of its type %d (uint32)",
                static_cast<long long>(maps->dims[0]), static_cast<int>(maps->dtype),
                static_cast<long long>(words), static_cast<int>(kU32));
  }
  step.device_maps = static_cast<const baracuda_position_map*>(maps->data);
  return BARACUDA_OK;
}

int32_t bind_in_place(const char* name, const Buffer* before, const Buffer* after, int64_t needed,
                      void** memory) {
  if (before != nullptr && after != nullptr && before->data != after->data) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "%s: got separate memory for its result, must be updated in place", name);
  }
  const Buffer& buffer = before != nullptr ? *before : *after;
  if (needed < 0) return baracuda_last_error()->status;
  if (bytes_of(buffer) < needed) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%s: got %lld bytes, must have %lld", name,
                static_cast<long long>(bytes_of(buffer)), static_cast<long long>(needed));
  }
  *memory = buffer.data;
  return BARACUDA_OK;
}

int32_t load_room() {
  const baracuda_stream_ops* ops = baracuda_cuda_stream_ops();
  return ops != nullptr ? ops->pause_load() : BARACUDA_OK;
}

int32_t make_room(const StepGrid& grid, int32_t sm_margin, void* stream) {
  const baracuda_stream_ops* ops = baracuda_cuda_stream_ops();
  if (ops == nullptr) return BARACUDA_OK;
  return give_head_start(*ops, {grid.blocks, grid.blocks_per_multiprocessor}, sm_margin, true,
                         stream);
}

void* handle(void* given, Stage stage, bool cuda,
             int32_t (*run)(const CallFrame& frame, Stage stage, void* stream)) {
  const CallFrame& frame = *static_cast<const CallFrame*>(given);
  if (answered_metadata(frame)) return nullptr;
  int32_t status = BARACUDA_OK;
  StreamGetArgs stream = {sizeof(stream), nullptr, frame.context, nullptr};
  if (frame.struct_size < sizeof(CallFrame)) {
    status = fail(BARACUDA_UNSUPPORTED, kCall, "call frame: got %zu bytes, must have %zu",
                  frame.struct_size, sizeof(CallFrame));
  } else if (cuda && stage == Stage::kStep) {
    void* error = frame.api->stream_get(&stream);
    if (error != nullptr) return error;
  }
  // XLA has made the stream's device current.
  if (status == BARACUDA_OK) status = run(frame, stage, stream.stream);
  return status == BARACUDA_OK ? nullptr : to_error(frame, status);
}

}  // namespace xla
}  // namespace baracuda
