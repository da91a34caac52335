// The kernels of the simt backward: row statistics, gradients of keys (dk, dv), gradients of rows
// (dq). No two blocks write or add to the same numbers, so every sum has one order.
#pragma once

#include "attention/backward/simt/tile.cuh"

namespace baracuda::simt {

constexpr int prepare_threads = 256;

// One warp for each row.
template <typename Compute>
__global__ void __launch_bounds__(prepare_threads)
    prepare_kernel(const __grid_constant__ BackwardArgs args) {
  const int64_t rows = args.batch_heads * args.query_len;
  const int64_t row = block_index() * (prepare_threads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t batch_head = row / args.query_len, i = row % args.query_len;
  const int64_t batch = batch_head / args.heads, head = batch_head % args.heads;
  const char* y = row_of(args.y, args.y_strides, batch, head, i, args.element);
  const char* dy = row_of(args.dy, args.dy_strides, batch, head, i, args.element);
  Compute sum = Compute(0);
  with_element<Compute>(args.element, [&](auto element) {
    using Element = decltype(element);
#pragma unroll 1
    for (int d = lane; d < args.head_dim; d += 32)
      sum = fma(Dtype<Element>::load(reinterpret_cast<const Element*>(y)[d]),
                Dtype<Element>::load(reinterpret_cast<const Element*>(dy)[d]), sum);
  });
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (lane != 0) return;
  constexpr int wide = element_of_sums<Compute>;
  const Compute lse = *reinterpret_cast<const Compute*>(
      row_of(args.lse, args.lse_strides, batch, head, i, wide));
  if (args.dlse != nullptr)
    sum -= *reinterpret_cast<const Compute*>(
        row_of(args.dlse, args.dlse_strides, batch, head, i, wide));
  const Scratch<Compute> scratch(args);
  const Compute infinity = static_cast<Compute>(CUDART_INF);
  scratch.delta[row] = sum;
  scratch.lse[row] = lse == -infinity ? infinity : lse;
}

// Computes P and dS of a tile's pairs.
template <typename C>
__device__ __forceinline__ void recompute_p(const BackwardArgs& args,
                                            const GradientShared<C>& shared,
                                            typename GradientMath<C>::Pairs& p,
                                            typename GradientMath<C>::Pairs& ds) {
#pragma unroll 1
  for (int part = 0; part < 2; ++part) {
    if (part == 1) {
#pragma unroll
      for (int i = 0; i < C::micro; ++i)
#pragma unroll
        for (int j = 0; j < C::micro; ++j) p[i][j] = ds[i][j];
    }
    GradientMath<C>::multiply(shared, shared.operands[part == 0 ? kQ : kDy],
                              shared.operands[part == 0 ? kK : kV], args.head_dim, ds);
  }
  GradientMath<C>::softmax_gradient(shared, static_cast<typename C::Compute>(args.scale), p, ds);
}

// One block for each tile of keys: computes dk and dv over the rows of all heads of the group.
template <typename C>
__global__ void __launch_bounds__(C::threads, 1)
    keys_kernel(const __grid_constant__ BackwardArgs args) {
  using Compute = typename C::Compute;
  using Math = GradientMath<C>;
  extern __shared__ __align__(16) char memory[];
  const GradientShared<C> shared(memory);
  const int64_t index = block_index();
  // Early keys first: under a causal mask they are the long ones.
  const int64_t key0 = index / args.batch_kv_heads * C::side;
  if (key0 >= args.key_len) return;
  const int64_t batch = index % args.batch_kv_heads / args.kv_heads;
  const int64_t kv_head = index % args.kv_heads;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const KeyLimits limits(args);
  const auto keys_of = [&](const void* base, const baracuda_strides& strides, int element) {
    return OperandRows{row_of(base, strides, batch, kv_head, key0, element), strides.seq,
                       args.key_len - key0, element};
  };
  if (threadIdx.x == 0) {
    shared.operands[kK] = keys_of(args.k, args.k_strides, args.element);
    shared.operands[kV] = keys_of(args.v, args.v_strides, args.element);
    shared.operands[kFirstOutput] = keys_of(args.dk, args.dk_strides, args.kv_element);
    shared.operands[kSecondOutput] = keys_of(args.dv, args.dv_strides, args.kv_element);
  }
  const int valid_keys =
      args.key_len - key0 < C::side ? static_cast<int>(args.key_len - key0) : C::side;
  const int64_t first_tile = limits.first_row(key0) / C::side;

  typename Math::Sum dk[C::chunks] = {}, dv[C::chunks] = {};
#pragma unroll 1
  for (int64_t head = kv_head * args.group; head < (kv_head + 1) * args.group; ++head) {
#pragma unroll 1
    for (int64_t row0 = first_tile * C::side; row0 < args.query_len; row0 += C::side) {
      const auto rows_of = [&](const void* base, const baracuda_strides& strides) {
        return OperandRows{row_of(base, strides, batch, head, row0, args.element), strides.seq,
                           args.query_len - row0, args.element};
      };
      if (threadIdx.x == 0) {
        shared.operands[kQ] = rows_of(args.q, args.q_strides);
        shared.operands[kDy] = rows_of(args.dy, args.dy_strides);
      }
      load_rows(args, shared, batch * args.heads + head, row0, key0,
                [&](int64_t row) { return limits.of_row(row); });
      typename Math::Pairs p, ds;
      recompute_p(args, shared, p, ds);
#pragma unroll
      for (int i = 0; i < C::micro; ++i)
#pragma unroll
        for (int j = 0; j < C::micro; ++j) {
          const int at = (tx + 16 * j) * C::weight_stride + ty + 16 * i;
          shared.weights[at] = p[i][j];
          shared.gradients[at] = ds[i][j];
        }
      // The first row of a tile sees the fewest keys.
      const bool is_cut = args.borders_vary && shared.seen[0] < valid_keys;
      const auto is_seen = [&](int key, int row) { return key < shared.seen[row]; };
#pragma unroll 1
      for (int chunk = 0; chunk * chunk_columns < args.head_dim; ++chunk) {
        // After this load P and dS can be read.
        Math::load(shared, shared.operands[kDy], shared.operands[kQ], chunk, args.head_dim);
#pragma unroll
        for (int c = 0; c < C::chunks; ++c) {
          if (c != chunk) continue;  // sums are in registers, which have no run-time index
          if (is_cut) {
            Math::add_seen(shared.weights, shared.chunk[0], is_seen, dv[c]);
            Math::add_seen(shared.gradients, shared.chunk[1], is_seen, dk[c]);
          } else {
            Math::add(shared.weights, shared.chunk[0], dv[c]);
            Math::add(shared.gradients, shared.chunk[1], dk[c]);
          }
        }
      }
      __syncthreads();  // before the statistics of the next rows are loaded
    }
  }

#pragma unroll
  for (int c = 0; c < C::chunks; ++c) {
    if (c * chunk_columns >= args.head_dim) break;
    Math::store_sum(shared, dk[c], static_cast<Compute>(args.scale), kFirstOutput, c, args.head_dim);
    Math::store_sum(shared, dv[c], Compute(1), kSecondOutput, c, args.head_dim);
  }
}

// One block for each tile of rows: computes dq over the keys that they see.
template <typename C>
__global__ void __launch_bounds__(C::threads, 1)
    rows_kernel(const __grid_constant__ BackwardArgs args) {
  using Compute = typename C::Compute;
  using Math = GradientMath<C>;
  extern __shared__ __align__(16) char memory[];
  const GradientShared<C> shared(memory);
  const int64_t index = block_index();
  const int64_t tiles = (args.query_len + C::side - 1) / C::side;
  if (index >= tiles * args.batch_heads) return;
  // Late rows first: under a causal mask they are the long ones.
  const int64_t row0 = (tiles - 1 - index / args.batch_heads) * C::side;
  const int64_t batch_head = index % args.batch_heads;
  const int64_t batch = batch_head / args.heads, head = batch_head % args.heads;
  const int64_t kv_head = head / args.group;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const KeyLimits limits(args);
  const int64_t end_row = row0 + C::side < args.query_len ? row0 + C::side : args.query_len;
  const int64_t end_key = args.key_len > 0 ? limits.of_row(end_row - 1) : 0;
  if (end_key == 0 && !args.first && !args.last) return;  // the sums stay as they are

  const auto rows_of = [&](const void* base, const baracuda_strides& strides) {
    return OperandRows{row_of(base, strides, batch, head, row0, args.element), strides.seq,
                       args.query_len - row0, args.element};
  };
  Compute* const sums = Scratch<Compute>(args).dq_sum +
                        (batch_head * args.query_len + row0) * args.head_dim;
  if (threadIdx.x == 0) {
    shared.operands[kQ] = rows_of(args.q, args.q_strides);
    shared.operands[kDy] = rows_of(args.dy, args.dy_strides);
    shared.operands[kFirstOutput] =
        args.last ? rows_of(args.dq, args.dq_strides)
                  : OperandRows{reinterpret_cast<const char*>(sums), args.head_dim,
                                args.query_len - row0, element_of_sums<Compute>};
  }

  typename Math::Sum dq[C::chunks] = {};
  if (!args.first) {
#pragma unroll
    for (int c = 0; c < C::chunks; ++c) {
      if (c * chunk_columns >= args.head_dim) break;
      Math::load_sum(shared, sums, args.query_len - row0, c, args.head_dim, dq[c]);
    }
  }

#pragma unroll 1
  for (int64_t key0 = 0; key0 < end_key; key0 += C::side) {
    const auto keys_of = [&](const void* base, const baracuda_strides& strides) {
      return OperandRows{row_of(base, strides, batch, kv_head, key0, args.element), strides.seq,
                         args.key_len - key0, args.element};
    };
    if (threadIdx.x == 0) {
      shared.operands[kK] = keys_of(args.k, args.k_strides);
      shared.operands[kV] = keys_of(args.v, args.v_strides);
    }
    const int valid_keys =
        args.key_len - key0 < C::side ? static_cast<int>(args.key_len - key0) : C::side;
    load_rows(args, shared, batch_head, row0, key0,
              [&](int64_t row) { return limits.of_row(row); });
    typename Math::Pairs p, ds;
    recompute_p(args, shared, p, ds);
#pragma unroll
    for (int i = 0; i < C::micro; ++i)
#pragma unroll
      for (int j = 0; j < C::micro; ++j)
        shared.gradients[(ty + 16 * i) * C::weight_stride + tx + 16 * j] = ds[i][j];
    const bool is_cut = args.borders_vary && shared.seen[0] < valid_keys;
    const auto is_seen = [&](int row, int key) { return key < shared.seen[row]; };
#pragma unroll 1
    for (int chunk = 0; chunk * chunk_columns < args.head_dim; ++chunk) {
      Math::load_one(shared, shared.operands[kK], chunk, args.head_dim);  // and dS can be read
#pragma unroll
      for (int c = 0; c < C::chunks; ++c) {
        if (c != chunk) continue;
        if (is_cut) {
          Math::add_seen(shared.gradients, shared.chunk[0], is_seen, dq[c]);
        } else {
          Math::add(shared.gradients, shared.chunk[0], dq[c]);
        }
      }
    }
    __syncthreads();  // before the limits of the next keys are loaded
  }

#pragma unroll
  for (int c = 0; c < C::chunks; ++c) {
    if (c * chunk_columns >= args.head_dim) break;
    Math::store_sum(shared, dq[c], args.last ? static_cast<Compute>(args.scale) : Compute(1),
                    kFirstOutput, c, args.head_dim);
  }
}

}  // namespace baracuda::simt
