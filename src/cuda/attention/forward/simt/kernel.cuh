// The simt attention step, with strict math: f32 (or f64) multiplies and adds on CUDA cores, and
// full-precision exponentials. Takes any head_dim up to 64*Chunks, and any scale and alignment.
//
// 128 threads as 8 groups of 16. A thread owns RowsPerThread query rows (ty + 8*i), of which it
// holds KeysPerThread columns of S and four columns of every 64-column chunk of O; a row's 16
// owners are half a warp. K and V stream through two shared chunk buffers, P through shared memory.
#pragma once

#include "attention/forward/simt/chunk_copy.cuh"
#include "attention/forward/simt/epilogue.cuh"
#include "attention/forward/step_args.cuh"

namespace baracuda::simt {

template <typename Element_, int Chunks, int RowsPerThread, int KeysPerThread, int BlocksPerSm>
struct Config {
  using Element = Element_;
  using Compute = typename Dtype<Element>::Compute;
  static constexpr int chunks = Chunks;
  static constexpr int rows = RowsPerThread;
  static constexpr int keys = KeysPerThread;
  static constexpr int columns = chunk_columns / 16;  // a thread's columns of O in a chunk
  static constexpr int threads = 128;
  static constexpr int blocks_per_sm = BlocksPerSm;
  static constexpr int block_m = 8 * RowsPerThread;
  static constexpr int block_n = 16 * KeysPerThread;
  static constexpr int vector = 16 / static_cast<int>(sizeof(Compute));
  static constexpr int q_stride = chunk_columns * Chunks + padding<Compute>;
  static constexpr int p_stride = block_n + padding<Compute>;
  static constexpr int q_elements = block_m * q_stride;
  static constexpr int chunk_elements = block_n * chunk_stride<Compute>;
  static constexpr int p_elements = block_m * p_stride;
  static constexpr int limits_offset = static_cast<int>(sizeof(Compute)) *
                                       (q_elements + 2 * chunk_elements + p_elements);
  static constexpr int work_offset = limits_offset + 8 * block_m;
  static constexpr int shared_bytes = work_offset + static_cast<int>(sizeof(BlockWork));
};

template <typename C>
struct Tile {
  using Compute = typename C::Compute;
  using Pack = Vector<Compute>;

  // s += Q K' over `depth` columns (rounded up to a vector) of one chunk.
  static __device__ __forceinline__ void scores(Compute (&s)[C::rows][C::keys], const Compute* q,
                                                const Compute* k, int depth) {
#pragma unroll 2
    for (int d = 0; d < depth; d += C::vector) {
      Pack a[C::rows], b[C::keys];
#pragma unroll
      for (int i = 0; i < C::rows; ++i)
        a[i] = *reinterpret_cast<const Pack*>(q + 8 * i * C::q_stride + d);
#pragma unroll
      for (int j = 0; j < C::keys; ++j)
        b[j] = *reinterpret_cast<const Pack*>(k + 16 * j * chunk_stride<Compute> + d);
#pragma unroll
      for (int e = 0; e < C::vector; ++e)
#pragma unroll
        for (int i = 0; i < C::rows; ++i)
#pragma unroll
          for (int j = 0; j < C::keys; ++j) s[i][j] = fma(a[i].x[e], b[j].x[e], s[i][j]);
    }
  }

  // sum = P V over the tile's keys for one chunk of columns. A tile's sum starts at zero and is
  // added to O once, because adding key by key to a long sum would lose more of every addend.
  static __device__ __forceinline__ void products(Compute (&sum)[C::rows][C::columns],
                                                  const Compute* p, const Compute* v) {
#pragma unroll
    for (int i = 0; i < C::rows; ++i)
#pragma unroll
      for (int c = 0; c < C::columns; ++c) sum[i][c] = Compute(0);
#pragma unroll 2
    for (int n = 0; n < C::block_n; n += C::vector) {
      Pack a[C::rows];
#pragma unroll
      for (int i = 0; i < C::rows; ++i)
        a[i] = *reinterpret_cast<const Pack*>(p + 8 * i * C::p_stride + n);
#pragma unroll
      for (int e = 0; e < C::vector; ++e) {
        Pack b[C::columns / C::vector];
#pragma unroll
        for (int h = 0; h < C::columns / C::vector; ++h)
          b[h] = *reinterpret_cast<const Pack*>(v + (n + e) * chunk_stride<Compute> +
                                                h * 16 * C::vector);
#pragma unroll
        for (int i = 0; i < C::rows; ++i)
#pragma unroll
          for (int c = 0; c < C::columns; ++c)
            sum[i][c] = fma(a[i].x[e], b[c / C::vector].x[c % C::vector], sum[i][c]);
      }
    }
  }
};

template <typename C>
__global__ void __launch_bounds__(C::threads, C::blocks_per_sm)
    step_kernel(const __grid_constant__ StepArgs args) {
  using Element = typename C::Element;
  using Compute = typename C::Compute;
  extern __shared__ __align__(16) char shared[];
  Compute* q_tile = reinterpret_cast<Compute*>(shared);
  Compute* chunk_buffers = q_tile + C::q_elements;
  Compute* p_tile = chunk_buffers + 2 * C::chunk_elements;
  int64_t* limits = reinterpret_cast<int64_t*>(shared + C::limits_offset);

  volatile BlockWork* parked = reinterpret_cast<BlockWork*>(shared + C::work_offset);
  BlockWork work;
  if (!block_work(args, C::block_m, work)) return;
  const int tx = threadIdx.x % 16;
  const int ty = threadIdx.x / 16;
  const int head_dim = args.head_dim;
  const int chunks = (head_dim + chunk_columns - 1) / chunk_columns;
  const Compute scale = static_cast<Compute>(args.scale);
  const Compute none = minus_infinity(Compute());

  const Element* q = static_cast<const Element*>(args.q) + work.batch * args.q_strides.batch +
                     work.head * args.q_strides.head;
  for (int i = threadIdx.x; i < C::block_m * chunk_columns * C::chunks; i += C::threads) {
    const int row = i / (chunk_columns * C::chunks), d = i % (chunk_columns * C::chunks);
    const int64_t query = work.row0 + row;
    q_tile[row * C::q_stride + d] =
        query < args.query_len && d < head_dim
            ? Dtype<Element>::load(q[query * args.q_strides.seq + d])
            : Compute(0);
  }
  write_row_limits(args, work.row0, C::block_m, limits);
  if (threadIdx.x == 0) park(parked, work);
  __syncthreads();
  const int64_t end = limits[C::block_m - 1];  // keys that any row of the tile sees
  if (end == 0 && !args.first && !args.last) return;  // the state stays as it is

  // One chunk load is always in flight: chunk 0.. of K, then of V, then of the next tile's K.
  const Element* k = static_cast<const Element*>(args.k) + work.batch * args.k_strides.batch +
                     work.kv_head * args.k_strides.head;
  const Element* v = static_cast<const Element*>(args.v) + work.batch * args.v_strides.batch +
                     work.kv_head * args.v_strides.head;
  int stage = 0;  // the buffer of the next chunk
  const auto load = [&](const Element* src, int64_t row_stride, int64_t key, int chunk) {
    copy_chunk<Element, C::block_n, C::threads>(
        chunk_buffers + stage * C::chunk_elements, src + key * row_stride + chunk * chunk_columns,
        row_stride, args.key_len - key, head_dim - chunk * chunk_columns);
    cp_async_commit();
    stage ^= 1;
  };
  // Waits for the chunk in flight. The barrier also frees the other buffer.
  const auto arrive = [&]() {
    cp_async_wait<0>();
    __syncthreads();
    return static_cast<const Compute*>(chunk_buffers + (stage ^ 1) * C::chunk_elements);
  };
  if (end > 0) load(k, args.k_strides.seq, 0, 0);

  RowState<C> state;
  state.load(args, work);

#pragma unroll 1
  for (int64_t key = 0; key < end; key += C::block_n) {
    Compute s[C::rows][C::keys];
#pragma unroll
    for (int i = 0; i < C::rows; ++i)
#pragma unroll
      for (int j = 0; j < C::keys; ++j) s[i][j] = Compute(0);
#pragma unroll 1
    for (int c = 0; c < chunks; ++c) {
      const Compute* chunk = arrive();
      if (c + 1 < chunks) {
        load(k, args.k_strides.seq, key, c + 1);
      } else {
        load(v, args.v_strides.seq, key, 0);
      }
      const int depth = head_dim - c * chunk_columns;
      Tile<C>::scores(s, q_tile + ty * C::q_stride + c * chunk_columns,
                      chunk + tx * chunk_stride<Compute>,
                      depth < chunk_columns ? depth : chunk_columns);
    }

    Compute factor[C::rows];
#pragma unroll
    for (int i = 0; i < C::rows; ++i) {
      const int64_t left = limits[ty + 8 * i] - key;
      const int visible = left < C::block_n ? static_cast<int>(left < 0 ? 0 : left) : C::block_n;
      Compute top = state.m[i];
#pragma unroll
      for (int j = 0; j < C::keys; ++j)
        top = fmax(top, tx + 16 * j < visible ? s[i][j] * scale : none);
#pragma unroll
      for (int mask = 8; mask > 0; mask /= 2)
        top = fmax(top, __shfl_xor_sync(0xffffffffu, top, mask));
      const Compute use = top == none ? Compute(0) : top;
      factor[i] = exponential(state.m[i] - use);
      state.m[i] = top;
      Compute sum = Compute(0);
#pragma unroll
      for (int j = 0; j < C::keys; ++j) {
        const Compute p =
            tx + 16 * j < visible ? exponential(fma(s[i][j], scale, -use)) : Compute(0);
        p_tile[(ty + 8 * i) * C::p_stride + tx + 16 * j] = p;
        sum += p;
      }
      state.l[i] = fma(state.l[i], factor[i], sum);
    }

#pragma unroll
    for (int c = 0; c < C::chunks; ++c) {
      if (c >= chunks) break;
      const Compute* chunk = arrive();  // and P is visible to its readers
      if (c + 1 < chunks) {
        load(v, args.v_strides.seq, key, c + 1);
      } else if (key + C::block_n < end) {
        load(k, args.k_strides.seq, key + C::block_n, 0);
      }
      Compute sum[C::rows][C::columns];
      Tile<C>::products(sum, p_tile + ty * C::p_stride, chunk + tx * C::vector);
#pragma unroll
      for (int i = 0; i < C::rows; ++i)
#pragma unroll
        for (int x = 0; x < C::columns; ++x)
          state.o[c][i][x] = fma(state.o[c][i][x], factor[i], sum[i][x]);
    }
  }

  if (args.last) {
    state.finish(args, unpark(parked), limits);
  } else {
    state.save(args, unpark(parked), limits);
  }
}

}  // namespace baracuda::simt
