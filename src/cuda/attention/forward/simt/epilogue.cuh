// Softmax state of a thread's rows: loaded from and saved to global memory, or normalised into y.
//
// State: o_acc [B*H*Q][head_dim], then m [B*H*Q], then l [B*H*Q], in the type of the arithmetic.
#pragma once

#include <math_constants.h>

#include "attention/forward/simt/chunk_copy.cuh"
#include "attention/forward/step_args.cuh"
#include "attention/forward/store_lse.cuh"
#include "attention/row_result.h"
#include "common/dtype.cuh"

namespace baracuda::simt {

__device__ __forceinline__ float minus_infinity(float) { return -CUDART_INF_F; }
__device__ __forceinline__ double minus_infinity(double) { return -CUDART_INF; }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <typename C>
struct RowState {
  using Element = typename C::Element;
  using Compute = typename C::Compute;

  Compute o[C::chunks][C::rows][C::columns];
  Compute m[C::rows];  // maximum of the scaled scores; -inf: no key seen
  Compute l[C::rows];  // this thread's part of the row sum

  __device__ __forceinline__ void load(const StepArgs& args, const BlockWork& work) {
    const Stored stored(args);
#pragma unroll
    for (int i = 0; i < C::rows; ++i) {
      const bool take = !args.first && work.row0 + row(i) < args.query_len;
      const int64_t r = work.state_row0 + row(i);
      m[i] = take ? stored.m[r] : minus_infinity(Compute());
      // 16 threads hold partial row sums until the end, so one of them gets the stored sum.
      l[i] = take && threadIdx.x % 16 == 0 ? stored.l[r] : Compute(0);
#pragma unroll
      for (int c = 0; c < C::chunks; ++c)
#pragma unroll
        for (int x = 0; x < C::columns; ++x)
          o[c][i][x] = take && column(c, x) < args.head_dim
                           ? stored.o[r * args.head_dim + column(c, x)]
                           : Compute(0);
    }
  }

  // limits: how many keys each row of the block sees in this step.
  __device__ __forceinline__ void save(const StepArgs& args, const BlockWork& work,
                                       const int64_t* limits) const {
    const Stored stored(args);
#pragma unroll
    for (int i = 0; i < C::rows; ++i) {
      const Compute total = row_sum(i);
      if (work.row0 + row(i) >= args.query_len) continue;
      const int64_t r = work.state_row0 + row(i);
      if (threadIdx.x % 16 == 0) {
        const bool undefined = is_undefined(args, total, i, r, limits);
        stored.m[r] = m[i];
        stored.l[r] = stored_sum(total, undefined);
      }
#pragma unroll
      for (int c = 0; c < C::chunks; ++c)
#pragma unroll
        for (int x = 0; x < C::columns; ++x)
          if (column(c, x) < args.head_dim) stored.o[r * args.head_dim + column(c, x)] = o[c][i][x];
    }
  }

  __device__ __forceinline__ void finish(const StepArgs& args, const BlockWork& work,
                                         const int64_t* limits) const {
#pragma unroll
    for (int i = 0; i < C::rows; ++i) {
      const Compute total = row_sum(i);
      const int64_t query = work.row0 + row(i);
      if (query >= args.query_len) continue;
      const int64_t r = work.state_row0 + row(i);
      const Compute empty = static_cast<Compute>(empty_row<double>(is_undefined(args, total, i, r, limits)));
      const Compute inverse = row_factor(total, empty);
      if (threadIdx.x % 16 == 0 && args.lse != nullptr)
        store_lse<Element>(args, r, log_sum_exp(m[i], Compute(1), total, empty));
      Element* y = static_cast<Element*>(args.y) + work.batch * args.y_strides.batch +
                   work.head * args.y_strides.head + query * args.y_strides.seq;
#pragma unroll
      for (int c = 0; c < C::chunks; ++c)
#pragma unroll
        for (int x = 0; x < C::columns; ++x)
          if (column(c, x) < args.head_dim)
            y[column(c, x)] = Dtype<Element>::store(o[c][i][x] * inverse);
    }
  }

 private:
  struct Stored {
    __device__ __forceinline__ explicit Stored(const StepArgs& args)
        : o(static_cast<Compute*>(args.state)),
          m(o + args.batch_heads * args.query_len * args.head_dim),
          l(m + args.batch_heads * args.query_len) {}
    Compute* o;
    Compute* m;
    Compute* l;
  };

  __device__ __forceinline__ bool is_undefined(const StepArgs& args, Compute total, int i,
                                               int64_t state_row, const int64_t* limits) const {
    if (!is_empty_row(m[i], total)) return false;
    return limits[row(i)] > 0 || (!args.first && is_undefined_sum(Stored(args).l[state_row]));
  }
  static __device__ __forceinline__ int row(int i) { return threadIdx.x / 16 + 8 * i; }
  // A thread holds whole 16-byte vectors of a chunk's columns, so V is read as vectors.
  static __device__ __forceinline__ int column(int chunk, int x) {
    return chunk * chunk_columns + x / C::vector * 16 * C::vector +
           static_cast<int>(threadIdx.x) % 16 * C::vector + x % C::vector;
  }
  __device__ __forceinline__ Compute row_sum(int i) const {
    Compute total = l[i];
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
    return total;
  }
};

}  // namespace baracuda::simt
