// Runs an attention step from an XLA call frame.
#include "attention/forward/family.h"
#include "baracuda/attention.h"
#include "baracuda/status.h"
#include "baracuda/xla_ffi.h"
#include "common/interrupt.h"
#include "interop/interrupt_watch.h"
#include "interop/xla_call.h"

namespace baracuda {
namespace xla {
namespace {

struct Options {
  int64_t first, last, causal, kernel, sequence_dim, sm_margin, interruptible;
  double scale;
};

int32_t read_options(const Attributes& attributes, Options& options) {
  int32_t status = read_integers(attributes, {{"first", &options.first},
                                              {"last", &options.last},
                                              {"causal", &options.causal},
                                              {"kernel", &options.kernel},
                                              {"sm_margin", &options.sm_margin},
                                              {"sequence_dim", &options.sequence_dim},
                                              {"interruptible", &options.interruptible}});
  if (status == BARACUDA_OK) status = check_sequence_dim(options.sequence_dim);
  return status == BARACUDA_OK ? read_float(attributes, "scale", options.scale) : status;
}

int32_t bind_state(Buffers& operands, Buffers& results, const Options& options, StepParams& step) {
  const Buffer *before = nullptr, *after = nullptr;
  int32_t status = BARACUDA_OK;
  if (!options.first) status = operands.next("state", -1, before);
  if (status == BARACUDA_OK && !options.last) status = results.next("state", -1, after);
  if (status != BARACUDA_OK || (before == nullptr && after == nullptr)) return status;
  const int64_t needed =
      baracuda_attention_state_bytes(static_cast<int32_t>(options.kernel), &step);
  return bind_in_place("state", before, after, needed, &step.state);
}

int32_t bind_outputs(Buffers& results, const Buffer& q, StepParams& step) {
  const Buffer *y = nullptr, *lse = nullptr;
  int32_t status = results.next("y", 4, y);
  if (status == BARACUDA_OK) status = results.next("lse", -1, lse);
  if (status == BARACUDA_OK) status = check_same("y", *y, q, "q");
  if (status == BARACUDA_OK) status = check_rows("lse", *lse, step);
  if (status != BARACUDA_OK) return status;
  step.y = y->data;
  step.lse = lse->data;
  step.lse_element = find_element(*lse);
  return BARACUDA_OK;
}

int32_t load(int32_t kernel, const StepParams& step) {
  const int32_t status = baracuda_attention_load(kernel, &step);
  return status == BARACUDA_OK ? load_room() : status;
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

// A step on the host. XLA runs it on any thread, while the application's thread waits in C++. An
// exception of a signal handler cannot leave this function, but an XLA error can.
//
// After a signal, only the last step fails. Between the steps XLA exchanges K and V, and XLA ends
// the process if one device does not take part. So an interrupted step leaves a mark in place of
// its state, by which the next steps know. A step is not interruptible if the exchanges of a
// backward come after it.
int32_t step_on_host(const StepParams& step, bool interruptible) {
  const SignalsLater later;
  if (!interruptible) return baracuda_attention_step(BARACUDA_ATTENTION_HOST, &step, nullptr);
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
  StepParams step = {};
  step.struct_size = sizeof(step);
  step.scale = options.scale;
  step.lse_element = BARACUDA_F32;
  step.sm_margin = static_cast<int32_t>(options.sm_margin);
  step.flags = options.causal ? BARACUDA_STEP_CAUSAL : 0;
  status = bind_problem(operands, options.sequence_dim, step);
  if (status == BARACUDA_OK && options.causal) status = bind_maps(operands, step);
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
  if (kernel == BARACUDA_ATTENTION_HOST) return step_on_host(step, options.interruptible != 0);
  if (step.sm_margin > 0) {
    StepGrid grid{};
    status = attention_step_grid(kernel, step, &grid);
    if (status == BARACUDA_OK) status = make_room(grid, step.sm_margin, stream);
  }
  return status == BARACUDA_OK ? baracuda_attention_step(kernel, &step, stream) : status;
}

}  // namespace
}  // namespace xla
}  // namespace baracuda

extern "C" void* baracuda_xla_attention_host(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kStep, false, baracuda::xla::run);
}

extern "C" void* baracuda_xla_attention_cuda(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kStep, true, baracuda::xla::run);
}

extern "C" void* baracuda_xla_attention_cuda_load(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kLoad, true, baracuda::xla::run);
}
