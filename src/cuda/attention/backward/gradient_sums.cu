// Adds gradients that were sent around the ring, on a GPU: out = received + share, rounded if out
// is narrower. The kernel is bound by memory: it moves at most 12 bytes for each element, 24 in
// float64.
#include <stdint.h>

#include "attention/backward/family.h"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"
#include "common/kernel_load.h"

namespace baracuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksOfMultiprocessor = 8;

struct SumArgs {
  const void* received[2];  // of dk and dv
  const void* share[2];
  void* out[2];
  baracuda_strides strides[2];
  bool dense[2];   // out has the dense strides of received and share
  int64_t groups;  // number of groups of elements in one tensor; a thread adds a group at once
  int64_t groups_of_row;
  int64_t key_len;
  int64_t kv_heads;
};

template <typename T, int Count>
struct alignas(Count * sizeof(T)) Group {
  T x[Count];
};

template <typename Sum, typename Out, int Count>
__global__ void __launch_bounds__(kThreads) add_kernel(const SumArgs args) {
  await_previous_grids();
  const int tensor = blockIdx.y;
  using Wide = Group<Sum, Count>;
  using Narrow = Group<Out, Count>;
  const Wide* const received = static_cast<const Wide*>(args.received[tensor]);
  const Wide* const share = static_cast<const Wide*>(args.share[tensor]);
  Narrow* const out = static_cast<Narrow*>(args.out[tensor]);
  const baracuda_strides& strides = args.strides[tensor];
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < args.groups; i += step) {
    const Wide a = received[i], b = share[i];
    Narrow sum;
#pragma unroll
    for (int j = 0; j < Count; ++j) sum.x[j] = Dtype<Out>::store(a.x[j] + b.x[j]);
    int64_t at = i;
    if (!args.dense[tensor]) {
      const int64_t row = i / args.groups_of_row, head = row / args.key_len;
      at = (head / args.kv_heads * strides.batch + head % args.kv_heads * strides.head +
            row % args.key_len * strides.seq) / Count +
           i % args.groups_of_row;
    }
    out[at] = sum;
  }
}

bool lies_dense(const StepParams& p, const baracuda_strides& s) {
  const baracuda_strides dense = dense_key_strides(p);
  return (s.seq == dense.seq || p.key_len == 1) && (s.head == dense.head || p.kv_heads == 1) &&
         (s.batch == dense.batch || p.batch == 1);
}

bool is_multiple(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// True if elements can be added in groups: a group is within a row, and its addresses are aligned.
bool in_groups(const StepParams& p, const GradientSum& sum, int64_t count) {
  const int64_t wide = count * accumulator_bytes(p.element);
  const int64_t narrow = count * baracuda_element_bytes(sum.element);
  return p.head_dim % count == 0 && is_multiple(sum.received, wide) &&
         is_multiple(sum.share, wide) && is_multiple(sum.out, narrow) &&
         sum.strides.batch % count == 0 && sum.strides.head % count == 0 &&
         sum.strides.seq % count == 0;
}

template <typename Sum, typename Out, int Count>
int32_t load_sum(bool* waits = nullptr) {
  static ReadyDevices ready;
  return ensure_loaded(reinterpret_cast<const void*>(add_kernel<Sum, Out, Count>), 0, ready, waits);
}

template <typename Sum, typename Out>
int32_t load_sums() {
  const int32_t status = load_sum<Sum, Out, 1>();
  return status == BARACUDA_OK ? load_sum<Sum, Out, 16 / sizeof(Sum)>() : status;
}

template <typename Sum, typename Out, int Count>
int32_t launch(const StepParams& p, const GradientSum (&sums)[2], cudaStream_t stream) {
  int processors = 0;
  bool waits = false;
  int32_t status = load_sum<Sum, Out, Count>(&waits);
  if (status == BARACUDA_OK) status = count_multiprocessors(&processors);
  if (status != BARACUDA_OK) return status;
  SumArgs args{};
  for (int i = 0; i < 2; ++i) {
    args.received[i] = sums[i].received;
    args.share[i] = sums[i].share;
    args.out[i] = sums[i].out;
    args.strides[i] = sums[i].strides;
    args.dense[i] = lies_dense(p, sums[i].strides);
  }
  args.groups_of_row = p.head_dim / Count;
  args.key_len = p.key_len;
  args.kv_heads = p.kv_heads;
  args.groups = p.batch * p.kv_heads * p.key_len * args.groups_of_row;
  const int64_t needed = (args.groups + kThreads - 1) / kThreads;
  const int64_t places = int64_t{kBlocksOfMultiprocessor} * processors / 2;
  const dim3 grid(static_cast<unsigned>(needed < places ? needed : places), 2);
  return launch_grid(add_kernel<Sum, Out, Count>, grid, kThreads, 0, stream, waits, args);
}

template <typename Sum, typename Out>
int32_t add_as(const StepParams& p, const GradientSum (&sums)[2], cudaStream_t stream) {
  constexpr int count = 16 / sizeof(Sum);
  if (in_groups(p, sums[0], count) && in_groups(p, sums[1], count))
    return launch<Sum, Out, count>(p, sums, stream);
  return launch<Sum, Out, 1>(p, sums, stream);
}

int32_t add(const StepParams& p, const GradientSum (&sums)[2], void* stream) {
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (p.head_dim == 0) return BARACUDA_OK;
  switch (sums[0].element) {
    case BARACUDA_F16: return add_as<float, __half>(p, sums, on);
    case BARACUDA_BF16: return add_as<float, __nv_bfloat16>(p, sums, on);
    case BARACUDA_F64: return add_as<double, double>(p, sums, on);
    default: return add_as<float, float>(p, sums, on);
  }
}

int32_t load() {
  int32_t status = load_sums<float, __half>();
  if (status == BARACUDA_OK) status = load_sums<float, __nv_bfloat16>();
  if (status == BARACUDA_OK) status = load_sums<float, float>();
  return status == BARACUDA_OK ? load_sums<double, double>() : status;
}

}  // namespace

const GradientAdder& gpu_gradient_adder() {
  static constexpr GradientAdder adder = {load, add};
  return adder;
}

}  // namespace baracuda
