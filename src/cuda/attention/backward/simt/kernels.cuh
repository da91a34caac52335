// The kernels of the simt backward: row statistics, gradients of keys (dk, dv), gradients of rows (dq).
// No two blocks write or add to the same numbers, so every sum has one order.
#pragma once

#include "attention/backward/simt/tile.cuh"

namespace baracuda::simt {

constexpr int prepare_threads = 256;

// A warp a row.
template <typename Element>
__global__ void __launch_bounds__(prepare_threads)
    prepare_kernel(const __grid_constant__ BackwardArgs args) {
  using Compute = typename Dtype<Element>::Compute;
  const int64_t rows = args.batch_heads * args.query_len;
  const int64_t row = block_index() * (prepare_threads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t batch_head = row / args.query_len, i = row % args.query_len;
  const int64_t batch = batch_head / args.heads, head = batch_head % args.heads;
  const Element* y = head_of<const Element>(args.y, args.y_strides, batch, head) +
                     i * args.y_strides.seq;
  const Element* dy = head_of<const Element>(args.dy, args.dy_strides, batch, head) +
                      i * args.dy_strides.seq;
  Compute sum = Compute(0);
  for (int d = lane; d < args.head_dim; d += 32)
    sum = fma(Dtype<Element>::load(y[d]), Dtype<Element>::load(dy[d]), sum);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (lane != 0) return;
  const Compute lse = head_of<const Compute>(args.lse, args.lse_strides, batch,
                                             head)[i * args.lse_strides.seq];
  if (args.dlse != nullptr)
    sum -= head_of<const Compute>(args.dlse, args.dlse_strides, batch,
                                  head)[i * args.dlse_strides.seq];
  const Scratch<Compute> scratch(args);
  const Compute infinity = static_cast<Compute>(CUDART_INF);
  scratch.delta[row] = sum;
  scratch.lse[row] = lse == -infinity ? infinity : lse;
}

// One of two by value: a reference to either would need both in memory.
template <typename Element>
__device__ __forceinline__ OperandRows<Element> choose(bool first, const OperandRows<Element>& a,
                                                       const OperandRows<Element>& b) {
  return {first ? a.data : b.data, first ? a.stride : b.stride, first ? a.valid : b.valid};
}

// A block a tile of keys: dk and dv, over the rows of all heads of its group.
template <typename C>
__global__ void __launch_bounds__(C::threads, 1)
    keys_kernel(const __grid_constant__ BackwardArgs args) {
  using Element = typename C::Element;
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
  const Compute scale = static_cast<Compute>(args.scale);
  const KeyLimits limits(args);
  const auto k = rows_from(head_of<const Element>(args.k, args.k_strides, batch, kv_head),
                           args.k_strides.seq, args.key_len, key0);
  const auto v = rows_from(head_of<const Element>(args.v, args.v_strides, batch, kv_head),
                           args.v_strides.seq, args.key_len, key0);
  const int valid_keys = k.valid < C::side ? static_cast<int>(k.valid) : C::side;
  const int64_t first_tile = limits.first_row(key0) / C::side;

  typename Math::Sum dk[C::chunks] = {}, dv[C::chunks] = {};
#pragma unroll 1
  for (int64_t head = kv_head * args.group; head < (kv_head + 1) * args.group; ++head) {
    const Element* q_head = head_of<const Element>(args.q, args.q_strides, batch, head);
    const Element* dy_head = head_of<const Element>(args.dy, args.dy_strides, batch, head);
#pragma unroll 1
    for (int64_t row0 = first_tile * C::side; row0 < args.query_len; row0 += C::side) {
      const auto q = rows_from(q_head, args.q_strides.seq, args.query_len, row0);
      const auto dy = rows_from(dy_head, args.dy_strides.seq, args.query_len, row0);
      load_rows(args, shared, batch * args.heads + head, row0, key0,
                [&](int64_t row) { return limits.of_row(row); });
      typename Math::Pairs p, ds;
#pragma unroll 1
      for (int part = 0; part < 2; ++part) {
        if (part == 1) {
#pragma unroll
          for (int i = 0; i < C::micro; ++i)
#pragma unroll
            for (int j = 0; j < C::micro; ++j) p[i][j] = ds[i][j];
        }
        Math::multiply(shared, choose(part == 0, q, dy), choose(part == 0, k, v), args.head_dim,
                       ds);
      }
      Math::weigh(shared, scale, p, ds);
#pragma unroll
      for (int i = 0; i < C::micro; ++i)
#pragma unroll
        for (int j = 0; j < C::micro; ++j) {
          const int at = (tx + 16 * j) * C::weight_stride + ty + 16 * i;
          shared.weights[at] = p[i][j];
          shared.gradients[at] = ds[i][j];
        }
      // The first row of a tile sees the least.
      const bool is_cut = args.causal && shared.seen[0] < valid_keys;
      const auto is_seen = [&](int key, int row) { return key < shared.seen[row]; };
#pragma unroll
      for (int c = 0; c < C::chunks; ++c) {
        if (c * chunk_columns >= args.head_dim) break;
        Math::load(shared, dy, q, c, args.head_dim);  // and P and dS can be read
        if (is_cut) {
          Math::add_seen(shared.weights, shared.chunk[0], is_seen, dv[c]);
          Math::add_seen(shared.gradients, shared.chunk[1], is_seen, dk[c]);
        } else {
          Math::add(shared.weights, shared.chunk[0], dv[c]);
          Math::add(shared.gradients, shared.chunk[1], dk[c]);
        }
      }
      __syncthreads();  // before the next rows' statistics come
    }
  }

  const int64_t at_dk = key0 * args.dk_strides.seq, at_dv = key0 * args.dv_strides.seq;
  void* dk_out = args.wide_kv
                     ? static_cast<void*>(head_of<Compute>(args.dk, args.dk_strides, batch, kv_head) + at_dk)
                     : head_of<Element>(args.dk, args.dk_strides, batch, kv_head) + at_dk;
  void* dv_out = args.wide_kv
                     ? static_cast<void*>(head_of<Compute>(args.dv, args.dv_strides, batch, kv_head) + at_dv)
                     : head_of<Element>(args.dv, args.dv_strides, batch, kv_head) + at_dv;
#pragma unroll
  for (int c = 0; c < C::chunks; ++c) {
    if (c * chunk_columns >= args.head_dim) break;
    Math::store_sum(shared, dk[c], scale, dk_out, args.wide_kv, args.dk_strides.seq, k.valid, c,
                    args.head_dim);
    Math::store_sum(shared, dv[c], Compute(1), dv_out, args.wide_kv, args.dv_strides.seq, k.valid, c,
                    args.head_dim);
  }
}

// A block a tile of rows: dq, over the keys that they see.
template <typename C>
__global__ void __launch_bounds__(C::threads, 1)
    rows_kernel(const __grid_constant__ BackwardArgs args) {
  using Element = typename C::Element;
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
  const Compute scale = static_cast<Compute>(args.scale);
  const KeyLimits limits(args);
  const int64_t end_row = row0 + C::side < args.query_len ? row0 + C::side : args.query_len;
  const int64_t end_key = args.key_len > 0 ? limits.of_row(end_row - 1) : 0;
  if (end_key == 0 && !args.first && !args.last) return;  // the sums stay as they are

  const auto q = rows_from(head_of<const Element>(args.q, args.q_strides, batch, head),
                           args.q_strides.seq, args.query_len, row0);
  const auto dy = rows_from(head_of<const Element>(args.dy, args.dy_strides, batch, head),
                            args.dy_strides.seq, args.query_len, row0);
  const Element* k_head = head_of<const Element>(args.k, args.k_strides, batch, kv_head);
  const Element* v_head = head_of<const Element>(args.v, args.v_strides, batch, kv_head);
  Compute* sums = Scratch<Compute>(args).dq_sum + batch_head * args.query_len * args.head_dim;

  typename Math::Sum dq[C::chunks] = {};
  if (!args.first) {
    const auto sum = rows_from<Compute>(sums, args.head_dim, args.query_len, row0);
#pragma unroll
    for (int c = 0; c < C::chunks; ++c) {
      if (c * chunk_columns >= args.head_dim) break;
      Math::load_sum(shared, sum, c, args.head_dim, dq[c]);
    }
  }

#pragma unroll 1
  for (int64_t key0 = 0; key0 < end_key; key0 += C::side) {
    const auto k = rows_from(k_head, args.k_strides.seq, args.key_len, key0);
    const auto v = rows_from(v_head, args.v_strides.seq, args.key_len, key0);
    const int valid_keys = k.valid < C::side ? static_cast<int>(k.valid) : C::side;
    load_rows(args, shared, batch_head, row0, key0,
              [&](int64_t row) { return limits.of_row(row); });
    typename Math::Pairs p, ds;
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      if (part == 1) {
#pragma unroll
        for (int i = 0; i < C::micro; ++i)
#pragma unroll
          for (int j = 0; j < C::micro; ++j) p[i][j] = ds[i][j];
      }
      Math::multiply(shared, choose(part == 0, q, dy), choose(part == 0, k, v), args.head_dim, ds);
    }
    Math::weigh(shared, scale, p, ds);
#pragma unroll
    for (int i = 0; i < C::micro; ++i)
#pragma unroll
      for (int j = 0; j < C::micro; ++j)
        shared.gradients[(ty + 16 * i) * C::weight_stride + tx + 16 * j] = ds[i][j];
    const bool is_cut = args.causal && shared.seen[0] < valid_keys;
    const auto is_seen = [&](int row, int key) { return key < shared.seen[row]; };
#pragma unroll
    for (int c = 0; c < C::chunks; ++c) {
      if (c * chunk_columns >= args.head_dim) break;
      Math::load_one(shared, k, c, args.head_dim);  // and dS can be read
      if (is_cut) {
        Math::add_seen(shared.gradients, shared.chunk[0], is_seen, dq[c]);
      } else {
        Math::add(shared.gradients, shared.chunk[0], dq[c]);
      }
    }
    __syncthreads();  // before the next keys' limits come
  }

  void* out = args.last
                  ? static_cast<void*>(head_of<Element>(args.dq, args.dq_strides, batch, head) +
                                       row0 * args.dq_strides.seq)
                  : sums + row0 * args.head_dim;
#pragma unroll
  for (int c = 0; c < C::chunks; ++c) {
    if (c * chunk_columns >= args.head_dim) break;
    Math::store_sum(shared, dq[c], args.last ? scale : Compute(1), out, !args.last,
                    args.last ? args.dq_strides.seq : args.head_dim, q.valid, c, args.head_dim);
  }
}

}  // namespace baracuda::simt
