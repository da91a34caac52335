// From an XLA call frame to an attention step.
#include <cstdio>
#include <cstring>

#include "attention/forward/family.h"
#include "baracuda/attention.h"
#include "baracuda/exchange.h"
#include "baracuda/status.h"
#include "baracuda/xla_ffi.h"
#include "common/error.h"
#include "common/interrupt.h"
#include "interop/interrupt_watch.h"
#include "interop/xla_ffi_abi.h"
#include "ring/margin.h"

namespace baracuda {
namespace xla {
namespace {

constexpr const char* kCall = "baracuda_xla_attention";

enum class Stage { kLoad, kStep };

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

// XLA asks this way, before it registers a handler, which version it was written to. What is used
// here is in every 0.x from 0.1 on, so an older runtime is answered with its own version.
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
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "attribute %s is missing or no 64-bit %s", name,
                dtype == kF64 ? "float" : "integer");
  }
  value = *static_cast<const T*>(scalar->value);
  return BARACUDA_OK;
}

struct Options {
  int64_t first, last, causal, kernel, sequence_dim, sm_margin;
  double scale;
};

int32_t read_options(const Attributes& attributes, Options& options) {
  const struct {
    const char* name;
    int64_t* value;
  } integers[] = {
      {"first", &options.first},       {"last", &options.last},
      {"causal", &options.causal},     {"kernel", &options.kernel},
      {"sm_margin", &options.sm_margin}, {"sequence_dim", &options.sequence_dim},
  };
  for (const auto& integer : integers) {
    const int32_t status = read_scalar(attributes, integer.name, kS64, *integer.value);
    if (status != BARACUDA_OK) return status;
  }
  if (options.sequence_dim != 1 && options.sequence_dim != 2) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "sequence_dim is %lld: must be 1 or 2",
                static_cast<long long>(options.sequence_dim));
  }
  return read_scalar(attributes, "scale", kF64, options.scale);
}

// Operands, or results, in the order in which they come.
class Buffers {
 public:
  Buffers(const char* kind, const Values& values) : kind_(kind), values_(values) {}

  // The next one; rank < 0 takes any.
  int32_t next(const char* name, int64_t rank, const Buffer*& buffer) {
    if (taken_ >= values_.size || values_.types[taken_] != kBuffer) {
      return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%s %lld (%s) is missing or no buffer", kind_,
                  static_cast<long long>(taken_), name);
    }
    buffer = static_cast<const Buffer*>(values_.values[taken_++]);
    if (rank >= 0 && buffer->rank != rank) {
      return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%s has %lld dimensions: must have %lld", name,
                  static_cast<long long>(buffer->rank), static_cast<long long>(rank));
    }
    return BARACUDA_OK;
  }

  int32_t end() const {
    if (taken_ == values_.size) return BARACUDA_OK;
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%lld %ss are given: must be %lld",
                static_cast<long long>(values_.size), kind_, static_cast<long long>(taken_));
  }

 private:
  const char* kind_;
  const Values& values_;
  int64_t taken_ = 0;
};

// Its baracuda_element; -1 for what is none.
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

int32_t element_of(const Buffer& buffer, int32_t& element) {
  element = find_element(buffer);
  if (element >= 0) return BARACUDA_OK;
  return fail(BARACUDA_UNSUPPORTED, kCall,
              "q has XLA data type %d: must be f16, bf16, f32 or f64", buffer.dtype);
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
  return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%s must have the shape and type of %s", name,
              like_name);
}

int32_t bind_inputs(Buffers& operands, const Options& options,
                    baracuda_attention_step_params& step) {
  const Buffer *q = nullptr, *k = nullptr, *v = nullptr;
  int32_t status = operands.next("q", 4, q);
  if (status == BARACUDA_OK) status = operands.next("k", 4, k);
  if (status == BARACUDA_OK) status = operands.next("v", 4, v);
  if (status == BARACUDA_OK) status = element_of(*q, step.element);
  if (status == BARACUDA_OK) status = check_same("v", *v, *k, "k");
  if (status != BARACUDA_OK) return status;
  if (k->dtype != q->dtype || k->dims[0] != q->dims[0] || k->dims[3] != q->dims[3]) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "k must have the batch, head_dim and type of q");
  }
  const int64_t sequence = options.sequence_dim;
  const int64_t head = 3 - sequence;
  step.batch = q->dims[0];
  step.heads = q->dims[head];
  step.query_len = q->dims[sequence];
  step.head_dim = q->dims[3];
  step.kv_heads = k->dims[head];
  step.key_len = k->dims[sequence];
  step.q = q->data;
  step.k = k->data;
  step.v = v->data;
  step.q_strides = step.y_strides = dense_strides(*q, sequence);
  step.k_strides = step.v_strides = dense_strides(*k, sequence);
  if (!options.causal) return BARACUDA_OK;
  const Buffer* maps = nullptr;
  status = operands.next("maps", 1, maps);
  if (status != BARACUDA_OK) return status;
  if (maps->dims[0] != 2 * sizeof(baracuda_position_map) / 4) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "maps has %lld words: must have 16",
                static_cast<long long>(maps->dims[0]));
  }
  step.device_maps = static_cast<const baracuda_position_map*>(maps->data);
  return BARACUDA_OK;
}

int32_t bind_state(Buffers& operands, Buffers& results, const Options& options,
                   baracuda_attention_step_params& step) {
  const Buffer *before = nullptr, *after = nullptr;
  int32_t status = BARACUDA_OK;
  if (!options.first) status = operands.next("state", -1, before);
  if (status == BARACUDA_OK && !options.last) status = results.next("state", -1, after);
  if (status != BARACUDA_OK || (before == nullptr && after == nullptr)) return status;
  if (before != nullptr && after != nullptr && before->data != after->data) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall,
                "the state is updated in place: its result must be its operand's memory");
  }
  const Buffer& state = before != nullptr ? *before : *after;
  const int64_t needed = baracuda_attention_state_bytes(static_cast<int32_t>(options.kernel),
                                                        &step);
  if (needed < 0) return baracuda_last_error()->status;
  if (bytes_of(state) < needed) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "state has %lld bytes: must have %lld",
                static_cast<long long>(bytes_of(state)), static_cast<long long>(needed));
  }
  step.state = state.data;
  return BARACUDA_OK;
}

int32_t bind_outputs(Buffers& results, const Buffer& q, baracuda_attention_step_params& step) {
  const Buffer *y = nullptr, *lse = nullptr;
  int32_t status = results.next("y", 4, y);
  if (status == BARACUDA_OK) status = results.next("lse", -1, lse);
  if (status == BARACUDA_OK) status = check_same("y", *y, q, "q");
  if (status != BARACUDA_OK) return status;
  if (lse->dtype != kF32 || bytes_of(*lse) != 4 * step.batch * step.heads * step.query_len) {
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "lse must be f32 [B, H, Q]");
  }
  step.y = y->data;
  step.lse = lse->data;
  return BARACUDA_OK;
}

int32_t load(int32_t kernel, const baracuda_attention_step_params& step) {
  const baracuda_stream_ops* ops = baracuda_cuda_stream_ops();
  const int32_t status = baracuda_attention_load(kernel, &step);
  return status == BARACUDA_OK && ops != nullptr ? ops->pause_load() : status;
}

// For an exchange of XLA's own beside the step; its communicators keep NCCL's clusters.
int32_t make_room(int32_t kernel, const baracuda_attention_step_params& step, void* stream) {
  const baracuda_stream_ops* ops = baracuda_cuda_stream_ops();
  if (kernel == BARACUDA_ATTENTION_HOST || ops == nullptr) return BARACUDA_OK;
  StepGrid grid{};
  const int32_t status = attention_step_grid(kernel, step, &grid);
  if (status != BARACUDA_OK) return status;
  return give_head_start(*ops, {grid.blocks, grid.blocks_per_multiprocessor}, step.sm_margin,
                         true, stream);
}

// A NaN as float32 and, twice, as float64, that no arithmetic makes.
constexpr uint32_t kInterrupted = 0xffffba5a;

void fill_interrupted_state(void* state, int64_t bytes) {
  uint32_t* words = static_cast<uint32_t*>(state);
  for (int64_t i = 0; i < bytes / 4; ++i) words[i] = kInterrupted;
}

bool is_interrupted_state(const void* state, int64_t bytes) {
  const uint32_t* words = static_cast<const uint32_t*>(state);
  for (int64_t i = 0; i < 4 && i < bytes / 4; ++i) {
    if (words[i] != kInterrupted) return false;
  }
  return bytes > 0;
}

// On the host. XLA runs it on any thread, and the application's waits for it in C++: an exception of a
// signal's handler has no way out of here, but an error of XLA's has.
//
// Only the last step fails: between the others XLA exchanges K and V, and where one device stays away it
// ends the process. What an interrupted step leaves instead of its state tells the next ones.
int32_t step_on_host(const baracuda_attention_step_params& step) {
  const SignalsLater later;
  const InterruptWatch watch;
  const bool first = (step.flags & BARACUDA_STEP_FIRST) != 0;
  const bool last = (step.flags & BARACUDA_STEP_LAST) != 0;
  const int64_t bytes = first && last ? 0 : baracuda_attention_state_bytes(
                                                BARACUDA_ATTENTION_HOST, &step);
  const bool before = !first && is_interrupted_state(step.state, bytes);
  if (!before) {
    const StopScope scope(InterruptWatch::flag());
    const int32_t status = baracuda_attention_step(BARACUDA_ATTENTION_HOST, &step, nullptr);
    if (status != BARACUDA_ABORTED) return status;
    if (!last) {
      fill_interrupted_state(step.state, bytes);
      InterruptWatch::stay_in_run();
    }
  }
  if (!last) return BARACUDA_OK;
  if (before) InterruptWatch::leave_run();
  return fail(BARACUDA_INTERRUPTED, kCall, "Ctrl-C ended the run");
}

int32_t run(const CallFrame& frame, Stage stage, void* stream) {
  Options options;
  int32_t status = read_options(frame.attributes, options);
  if (status != BARACUDA_OK) return status;
  const int32_t kernel = static_cast<int32_t>(options.kernel);
  Buffers operands("operand", frame.operands), results("result", frame.results);
  baracuda_attention_step_params step = {};
  step.struct_size = sizeof(step);
  step.scale = options.scale;
  step.lse_element = BARACUDA_F32;
  step.sm_margin = static_cast<int32_t>(options.sm_margin);
  step.flags = options.causal ? BARACUDA_STEP_CAUSAL : 0;
  status = bind_inputs(operands, options, step);
  if (status != BARACUDA_OK) return status;
  if (stage == Stage::kLoad) return load(kernel, step);
  status = bind_state(operands, results, options, step);
  if (status == BARACUDA_OK && options.last) {
    status = bind_outputs(results, *static_cast<const Buffer*>(frame.operands.values[0]), step);
  }
  if (status == BARACUDA_OK) status = operands.end();
  if (status == BARACUDA_OK) status = results.end();
  if (status != BARACUDA_OK) return status;
  if (options.first) step.flags |= BARACUDA_STEP_FIRST;
  if (options.last) step.flags |= BARACUDA_STEP_LAST;
  if (kernel == BARACUDA_ATTENTION_HOST) return step_on_host(step);
  if (step.sm_margin > 0) status = make_room(kernel, step, stream);
  return status == BARACUDA_OK ? baracuda_attention_step(kernel, &step, stream) : status;
}

void* handle(void* given, Stage stage, bool cuda) {
  const CallFrame& frame = *static_cast<const CallFrame*>(given);
  if (answered_metadata(frame)) return nullptr;
  int32_t status = BARACUDA_OK;
  StreamGetArgs stream = {sizeof(stream), nullptr, frame.context, nullptr};
  if (frame.struct_size < sizeof(CallFrame)) {
    status = fail(BARACUDA_UNSUPPORTED, kCall, "the call frame has %zu bytes: must have %zu",
                  frame.struct_size, sizeof(CallFrame));
  } else if (cuda && stage == Stage::kStep) {
    void* error = frame.api->stream_get(&stream);
    if (error != nullptr) return error;
  }
  // XLA has made the stream's device current.
  if (status == BARACUDA_OK) status = run(frame, stage, stream.stream);
  return status == BARACUDA_OK ? nullptr : to_error(frame, status);
}

}  // namespace
}  // namespace xla
}  // namespace baracuda

extern "C" void* baracuda_xla_attention_host(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kStep, false);
}

extern "C" void* baracuda_xla_attention_cuda(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kStep, true);
}

extern "C" void* baracuda_xla_attention_cuda_load(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kLoad, true);
}
