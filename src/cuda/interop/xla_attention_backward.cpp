// Runs a step of the backward from an XLA call frame; before the first step also the preparation.
#include "attention/backward/family.h"
#include "baracuda/attention_backward.h"
#include "baracuda/status.h"
#include "baracuda/xla_ffi.h"
#include "common/interrupt.h"
#include "interop/xla_call.h"

namespace baracuda {
namespace xla {
namespace {

struct Options {
  int64_t first, last, causal, dlse, kernel, sequence_dim, sm_margin;
  double scale;
};

int32_t read_options(const Attributes& attributes, Options& options) {
  int32_t status = read_integers(attributes, {{"first", &options.first},
                                              {"last", &options.last},
                                              {"causal", &options.causal},
                                              {"dlse", &options.dlse},
                                              {"kernel", &options.kernel},
                                              {"sm_margin", &options.sm_margin},
                                              {"sequence_dim", &options.sequence_dim}});
  if (status == BARACUDA_OK) status = check_sequence_dim(options.sequence_dim);
  return status == BARACUDA_OK ? read_float(attributes, "scale", options.scale) : status;
}

int32_t next_like_q(Buffers& buffers, const char* name, const Buffer& q, const Buffer*& buffer) {
  const int32_t status = buffers.next(name, 4, buffer);
  return status == BARACUDA_OK ? check_same(name, *buffer, q, "q") : status;
}

int32_t next_rows(Buffers& buffers, const char* name, const StepParams& step,
                  const Buffer*& buffer) {
  const int32_t status = buffers.next(name, -1, buffer);
  return status == BARACUDA_OK ? check_rows(name, *buffer, step) : status;
}

baracuda_strides dense_row_strides(const StepParams& step) {
  return {step.heads * step.query_len, step.query_len, 1};
}

// The operands of the first step that the preparation reads.
int32_t bind_forward(Buffers& operands, const Options& options, const Buffer& q,
                     BackwardParams& params) {
  StepParams& step = params.step;
  const Buffer *y = nullptr, *lse = nullptr, *dlse = nullptr;
  int32_t status = next_like_q(operands, "y", q, y);
  if (status == BARACUDA_OK) status = next_rows(operands, "lse", step, lse);
  if (status == BARACUDA_OK && options.dlse) status = next_rows(operands, "dlse", step, dlse);
  if (status != BARACUDA_OK) return status;
  step.y = y->data;
  step.lse = lse->data;
  params.dlse = dlse == nullptr ? nullptr : dlse->data;
  params.lse_strides = params.dlse_strides = dense_row_strides(step);
  return BARACUDA_OK;
}

int32_t bind_scratch(Buffers& operands, Buffers& results, const Options& options,
                     StepParams& step) {
  const Buffer *before = nullptr, *after = nullptr;
  int32_t status = BARACUDA_OK;
  if (!options.first) status = operands.next("scratch", -1, before);
  if (status == BARACUDA_OK) status = results.next("scratch", -1, after);
  if (status != BARACUDA_OK) return status;
  const int64_t needed =
      baracuda_attention_backward_scratch_bytes(static_cast<int32_t>(options.kernel), &step);
  return bind_in_place("scratch", before, after, needed, &step.state);
}

int32_t bind_gradients(Buffers& results, const Options& options, const CallFrame& frame,
                       BackwardParams& params) {
  const Buffer& q = *static_cast<const Buffer*>(frame.operands.values[0]);
  const Buffer& k = *static_cast<const Buffer*>(frame.operands.values[1]);
  const Buffer *dk = nullptr, *dv = nullptr, *dq = nullptr;
  int32_t status = results.next("dk", 4, dk);
  if (status == BARACUDA_OK) status = results.next("dv", 4, dv);
  if (status == BARACUDA_OK && options.last) status = next_like_q(results, "dq", q, dq);
  if (status != BARACUDA_OK) return status;
  Buffer of_keys = k;
  of_keys.dtype = dk->dtype;  // the step checks that it is a valid type
  status = check_same("dk", *dk, of_keys, "k");
  if (status == BARACUDA_OK) status = check_same("dv", *dv, *dk, "dk");
  if (status != BARACUDA_OK) return status;
  params.dk = dk->data;
  params.dv = dv->data;
  params.dq = dq == nullptr ? nullptr : dq->data;
  params.kv_gradient_element = find_element(*dk);
  params.dy_strides = params.dq_strides = params.step.q_strides;
  params.dk_strides = params.dv_strides = params.step.k_strides;
  return BARACUDA_OK;
}

int32_t enqueue(int32_t kernel, const Options& options, BackwardParams& params, void* stream) {
  // XLA exchanges data between these steps, so all of them must run: Ctrl-C waits for the end.
  const SignalsLater later;
  const uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
  if (options.first) {
    if (options.last) params.step.flags |= whole;
    const int32_t status = baracuda_attention_backward_prepare(kernel, &params, stream);
    if (status != BARACUDA_OK) return status;
    params.step.flags |= BARACUDA_STEP_FIRST;
  }
  if (options.last) params.step.flags |= BARACUDA_STEP_LAST;
  int32_t status = BARACUDA_OK;
  if (kernel != BARACUDA_ATTENTION_HOST && params.step.sm_margin > 0) {
    StepGrid grid{};
    status = backward_step_grid(kernel, params, &grid);
    if (status == BARACUDA_OK) status = make_room(grid, params.step.sm_margin, stream);
  }
  return status == BARACUDA_OK ? baracuda_attention_backward_step(kernel, &params, stream)
                               : status;
}

int32_t run(const CallFrame& frame, Stage stage, void* stream) {
  Options options;
  int32_t status = read_options(frame.attributes, options);
  if (status != BARACUDA_OK) return status;
  const int32_t kernel = static_cast<int32_t>(options.kernel);
  Buffers operands("operand", frame.operands), results("result", frame.results);
  BackwardParams params = {};
  params.struct_size = sizeof(params);
  StepParams& step = params.step;
  step.struct_size = sizeof(step);
  step.scale = options.scale;
  step.sm_margin = static_cast<int32_t>(options.sm_margin);
  step.flags = options.causal ? BARACUDA_STEP_CAUSAL : 0;
  status = bind_problem(operands, options.sequence_dim, step);
  if (status != BARACUDA_OK) return status;
  step.lse_element = step.element == BARACUDA_F64 ? BARACUDA_F64 : BARACUDA_F32;
  if (stage == Stage::kLoad) {
    status = baracuda_attention_backward_load(kernel, &step);
    return status == BARACUDA_OK ? load_room() : status;
  }
  const Buffer& q = *static_cast<const Buffer*>(frame.operands.values[0]);
  const Buffer* dy = nullptr;
  status = next_like_q(operands, "dy", q, dy);
  if (status == BARACUDA_OK) params.dy = dy->data;
  if (status == BARACUDA_OK && options.causal) status = bind_maps(operands, step);
  if (status == BARACUDA_OK && options.first)
    status = bind_forward(operands, options, q, params);
  if (status == BARACUDA_OK) status = bind_scratch(operands, results, options, step);
  if (status == BARACUDA_OK) status = bind_gradients(results, options, frame, params);
  if (status == BARACUDA_OK) status = operands.end();
  if (status == BARACUDA_OK) status = results.end();
  return status == BARACUDA_OK ? enqueue(kernel, options, params, stream) : status;
}

}  // namespace
}  // namespace xla
}  // namespace baracuda

extern "C" void* baracuda_xla_attention_backward_host(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kStep, false, baracuda::xla::run);
}

extern "C" void* baracuda_xla_attention_backward_cuda(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kStep, true, baracuda::xla::run);
}

extern "C" void* baracuda_xla_attention_backward_cuda_load(void* frame) {
  return baracuda::xla::handle(frame, baracuda::xla::Stage::kLoad, true, baracuda::xla::run);
}
