// Arguments of the simt backward's kernels.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include <cfloat>
#include <type_traits>

#include "attention/backward/family.h"
#include "attention/positions.h"
#include "common/dtype.cuh"

namespace baracuda::simt {

struct BackwardArgs {
  const void* q;
  const void* k;
  const void* v;
  const void* y;
  const void* dy;
  const void* lse;
  const void* dlse;
  void* dq;
  void* dk;
  void* dv;
  void* scratch;  // delta and lse of all rows, then the sums of dq between steps
  baracuda_strides q_strides, k_strides, v_strides, y_strides, dy_strides, lse_strides,
      dlse_strides, dq_strides, dk_strides, dv_strides;
  baracuda_position_map q_map, k_map;
  const baracuda_position_map* device_maps;
  int64_t heads, kv_heads;
  int64_t group;  // query heads per key head
  int64_t batch_heads, batch_kv_heads;
  int64_t query_len, key_len;
  double scale;
  int32_t head_dim;
  int32_t element;     // of the operands and of dq
  int32_t kv_element;  // of dk and dv
  bool first;
  bool last;
  bool borders_vary;  // rows may see different keys, see problem.h
};

inline BackwardArgs make_args(const BackwardParams& params) {
  const StepParams& p = params.step;
  BackwardArgs a{};
  a.q = p.q;
  a.k = p.k;
  a.v = p.v;
  a.y = p.y;
  a.dy = params.dy;
  a.lse = p.lse;
  a.dlse = params.dlse;
  a.dq = params.dq;
  a.dk = params.dk;
  a.dv = params.dv;
  a.scratch = p.state;
  a.q_strides = p.q_strides;
  a.k_strides = p.k_strides;
  a.v_strides = p.v_strides;
  a.y_strides = p.y_strides;
  a.dy_strides = params.dy_strides;
  a.lse_strides = params.lse_strides;
  a.dlse_strides = params.dlse_strides;
  a.dq_strides = params.dq_strides;
  a.dk_strides = params.dk_strides;
  a.dv_strides = params.dv_strides;
  a.q_map = p.q_map;
  a.k_map = p.k_map;
  a.device_maps = p.device_maps;
  a.heads = p.heads;
  a.kv_heads = p.kv_heads;
  a.group = p.heads / p.kv_heads;
  a.batch_heads = p.batch * p.heads;
  a.batch_kv_heads = p.batch * p.kv_heads;
  a.query_len = p.query_len;
  a.key_len = p.key_len;
  // An infinite factor would turn a score of 0 into NaN.
  const double most = p.element == BARACUDA_F64 ? DBL_MAX : double{FLT_MAX};
  a.scale = p.scale > most ? most : p.scale < -most ? -most : p.scale;
  a.head_dim = static_cast<int32_t>(p.head_dim);
  a.first = (p.flags & BARACUDA_STEP_FIRST) != 0;
  a.last = (p.flags & BARACUDA_STEP_LAST) != 0;
  a.borders_vary = borders_may_vary(p);
  a.element = p.element;
  a.kv_element = params.kv_gradient_element;
  return a;
}

// One block for each work item. y is used only if x cannot hold the number.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t max_x = int64_t{1} << 30;
  const int64_t x = blocks < max_x ? blocks : max_x;
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>((blocks + x - 1) / x));
}

#if defined(__CUDACC__)

__device__ __forceinline__ int64_t block_index() {
  return blockIdx.x + static_cast<int64_t>(gridDim.x) * blockIdx.y;
}

// The element is a run-time value, so that one kernel serves all elements with the same arithmetic.
template <typename Compute>
constexpr int element_of_sums = std::is_same_v<Compute, double> ? BARACUDA_F64 : BARACUDA_F32;

__device__ __forceinline__ int bytes_of(int element) {
  return element == BARACUDA_F64 ? 8 : element == BARACUDA_F32 ? 4 : 2;
}

// Calls visit(x) with x of the element's type. If sums are double, all elements are double.
template <typename Compute, typename Visit>
__device__ __forceinline__ void with_element(int element, Visit visit) {
  if constexpr (std::is_same_v<Compute, double>) {
    visit(double{});
  } else if (element == BARACUDA_F32) {
    visit(float{});
  } else if (element == BARACUDA_F16) {
    visit(__half{});
  } else {
    visit(__nv_bfloat16{});
  }
}

// A row of one head.
__device__ __forceinline__ char* row_of(const void* base, const baracuda_strides& strides,
                                        int64_t batch, int64_t head, int64_t row, int element) {
  return static_cast<char*>(const_cast<void*>(base)) +
         (batch * strides.batch + head * strides.head + row * strides.seq) * bytes_of(element);
}

template <typename Compute>
struct Scratch {
  __device__ __forceinline__ explicit Scratch(const BackwardArgs& a)
      : delta(static_cast<Compute*>(a.scratch)),
        lse(delta + a.batch_heads * a.query_len),
        dq_sum(lse + a.batch_heads * a.query_len) {}
  Compute* delta;
  Compute* lse;
  Compute* dq_sum;
};

#endif  // __CUDACC__

}  // namespace baracuda::simt
