// A tile of query rows against a tile of keys: computes the scores, P and dS of the pairs, and sums
// of rows weighted by P or dS.
//
// 256 threads form a square of 16 x 16. Thread (ty, tx) owns the pairs of rows ty + 16*i and keys
// tx + 16*j. Of a sum it owns the outputs ty + 16*i, with four columns of each chunk of 64.
// Operands pass through shared memory in chunks; P and dS have tiles of their own there.
#pragma once

#include <math_constants.h>

#include "attention/backward/simt/args.cuh"
#include "attention/forward/simt/chunk_copy.cuh"

namespace baracuda::simt {

__device__ __forceinline__ float exponential_of(float x) { return expf(x); }
__device__ __forceinline__ double exponential_of(double x) { return exp(x); }

// An operand's rows of one head, from the tile's first row on. Kept in shared memory, because it is
// equal in all threads and the mainloop needs every register.
struct OperandRows {
  const char* data;
  int64_t stride;
  int64_t valid;  // rows up to the operand's end
  int element;
};

enum Operand { kQ, kDy, kK, kV, kFirstOutput, kSecondOutput, kOperands };

template <typename Compute_, int Chunks, int Micro>
struct GradientConfig {
  using Compute = Compute_;
  static constexpr int chunks = Chunks;
  static constexpr int micro = Micro;
  static constexpr int side = 16 * Micro;  // number of rows, and of keys, of a tile
  static constexpr int threads = 256;
  static constexpr int columns = chunk_columns / 16;  // a thread's columns of a sum in a chunk
  static constexpr int vector = 16 / static_cast<int>(sizeof(Compute));
  static constexpr int weight_stride = side + padding<Compute>;
  static constexpr int chunk_elements = side * chunk_stride<Compute>;
  static constexpr int weight_elements = side * weight_stride;
  static constexpr int statistics_offset =
      static_cast<int>(sizeof(Compute)) * (2 * chunk_elements + 2 * weight_elements);
  static constexpr int seen_offset = statistics_offset + static_cast<int>(sizeof(Compute)) * 2 * side;
  static constexpr int operands_offset = seen_offset + 4 * side;
  static constexpr int shared_bytes =
      operands_offset + kOperands * static_cast<int>(sizeof(OperandRows));
};

template <typename C>
struct GradientShared {
  using Compute = typename C::Compute;

  __device__ __forceinline__ explicit GradientShared(char* memory)
      : chunk{reinterpret_cast<Compute*>(memory),
              reinterpret_cast<Compute*>(memory) + C::chunk_elements},
        weights(chunk[1] + C::chunk_elements),
        gradients(weights + C::weight_elements),
        lse(reinterpret_cast<Compute*>(memory + C::statistics_offset)),
        delta(lse + C::side),
        seen(reinterpret_cast<int*>(memory + C::seen_offset)),
        operands(reinterpret_cast<OperandRows*>(memory + C::operands_offset)) {}

  Compute* chunk[2];
  Compute* weights;
  Compute* gradients;
  Compute* lse;    // of the tile's rows
  Compute* delta;
  int* seen;       // number of the tile's keys that each row sees; they are the first ones
  OperandRows* operands;  // by enum Operand
};

template <typename C>
struct GradientMath {
  using Compute = typename C::Compute;
  using Pack = Vector<Compute>;
  using Rows = OperandRows;
  using Pairs = Compute[C::micro][C::micro];
  using Sum = Compute[C::micro][C::columns];

  // One chunk of columns of one operand, or of two, in shared memory for all threads.
  static __device__ __forceinline__ void load_one(const GradientShared<C>& shared, const Rows& a,
                                                  int chunk, int head_dim) {
    __syncthreads();
    copy(shared.chunk[0], a, chunk, head_dim);
    arrive();
  }
  static __device__ __forceinline__ void load(const GradientShared<C>& shared, const Rows& a,
                                              const Rows& b, int chunk, int head_dim) {
    __syncthreads();
    copy(shared.chunk[0], a, chunk, head_dim);
    copy(shared.chunk[1], b, chunk, head_dim);
    arrive();
  }

  // pairs = rows * keys', for the tile.
  static __device__ __forceinline__ void multiply(const GradientShared<C>& shared, const Rows& rows,
                                                  const Rows& keys, int head_dim, Pairs& pairs) {
#pragma unroll
    for (int i = 0; i < C::micro; ++i)
#pragma unroll
      for (int j = 0; j < C::micro; ++j) pairs[i][j] = Compute(0);
    const Compute* row = shared.chunk[0] + threadIdx.x / 16 * chunk_stride<Compute>;
    const Compute* key = shared.chunk[1] + threadIdx.x % 16 * chunk_stride<Compute>;
#pragma unroll 1
    for (int chunk = 0; chunk * chunk_columns < head_dim; ++chunk) {
      load(shared, rows, keys, chunk, head_dim);
      const int left = head_dim - chunk * chunk_columns;
      const int depth = left < chunk_columns ? left : chunk_columns;
#pragma unroll 1
      for (int d = 0; d < depth; d += C::vector) {  // columns after depth are zeros
        Pack a[C::micro], b[C::micro];
#pragma unroll
        for (int i = 0; i < C::micro; ++i)
          a[i] = *reinterpret_cast<const Pack*>(row + 16 * i * chunk_stride<Compute> + d);
#pragma unroll
        for (int j = 0; j < C::micro; ++j)
          b[j] = *reinterpret_cast<const Pack*>(key + 16 * j * chunk_stride<Compute> + d);
#pragma unroll
        for (int e = 0; e < C::vector; ++e)
#pragma unroll
          for (int i = 0; i < C::micro; ++i)
#pragma unroll
            for (int j = 0; j < C::micro; ++j)
              pairs[i][j] = fma(a[i].x[e], b[j].x[e], pairs[i][j]);
      }
    }
  }

  // Turns scores into P, and gradients of P into dS. A select zeroes pairs that are not seen: a
  // product with zero could be NaN.
  static __device__ __forceinline__ void softmax_gradient(const GradientShared<C>& shared,
                                                          Compute scale, Pairs& scores,
                                                          Pairs& gradients) {
#pragma unroll
    for (int i = 0; i < C::micro; ++i) {
      const int row = threadIdx.x / 16 + 16 * i;
      const Compute lse = shared.lse[row], delta = shared.delta[row];
      const int seen = shared.seen[row];
#pragma unroll
      for (int j = 0; j < C::micro; ++j) {
        const Compute p = exponential_of(fma(scores[i][j], scale, -lse));
        const bool is_seen = static_cast<int>(threadIdx.x) % 16 + 16 * j < seen;
        gradients[i][j] = is_seen ? p * (gradients[i][j] - delta) : Compute(0);
        scores[i][j] = is_seen ? p : Compute(0);
      }
    }
  }

  // total += the sum over m of weights[output][m] * chunk[m]. A tile's sum starts at zero and is
  // added once, because adding one by one to a long sum would lose more of every addend.
  static __device__ __forceinline__ void add(const Compute* weights, const Compute* chunk,
                                             Sum& total) {
    const Compute* w = weights + threadIdx.x / 16 * C::weight_stride;
    const Compute* x = chunk + threadIdx.x % 16 * C::vector;
    Sum sum = {};
#pragma unroll 1
    for (int m = 0; m < C::side; m += C::vector) {
      Pack a[C::micro];
#pragma unroll
      for (int i = 0; i < C::micro; ++i)
        a[i] = *reinterpret_cast<const Pack*>(w + 16 * i * C::weight_stride + m);
#pragma unroll
      for (int e = 0; e < C::vector; ++e) {
        Pack b[C::columns / C::vector];
#pragma unroll
        for (int h = 0; h < C::columns / C::vector; ++h)
          b[h] = *reinterpret_cast<const Pack*>(x + (m + e) * chunk_stride<Compute> +
                                                h * 16 * C::vector);
#pragma unroll
        for (int i = 0; i < C::micro; ++i)
#pragma unroll
          for (int c = 0; c < C::columns; ++c)
            sum[i][c] = fma(a[i].x[e], b[c / C::vector].x[c % C::vector], sum[i][c]);
      }
    }
    accumulate(sum, total);
  }

  // The same for a tile that the mask cuts. Skips pairs that are not seen, since 0 * NaN is NaN.
  // is_seen(output, addend).
  template <typename IsSeen>
  static __device__ __forceinline__ void add_seen(const Compute* weights, const Compute* chunk,
                                                  IsSeen is_seen, Sum& total) {
    const int first = threadIdx.x / 16;
    const Compute* x = chunk + threadIdx.x % 16 * C::vector;
    Sum sum = {};
#pragma unroll 1
    for (int m = 0; m < C::side; ++m) {
      Compute b[C::columns];
#pragma unroll
      for (int c = 0; c < C::columns; ++c)
        b[c] = x[m * chunk_stride<Compute> + c / C::vector * 16 * C::vector + c % C::vector];
#pragma unroll
      for (int i = 0; i < C::micro; ++i) {
        const Compute a = weights[(first + 16 * i) * C::weight_stride + m];
        const bool take = is_seen(first + 16 * i, m);
#pragma unroll
        for (int c = 0; c < C::columns; ++c) sum[i][c] = take ? fma(a, b[c], sum[i][c]) : sum[i][c];
      }
    }
    accumulate(sum, total);
  }

  // Loads and stores one chunk of columns of sums, through shared memory. Registers have no
  // run-time index, so direct accesses would be unrolled and make up most of the kernel's code.
  static __device__ __forceinline__ void load_sum(const GradientShared<C>& shared,
                                                  const Compute* rows, int64_t valid, int chunk,
                                                  int head_dim, Sum& sum) {
    __syncthreads();
    copy_chunk<Compute, C::side, C::threads>(shared.chunk[0], rows + chunk * chunk_columns, head_dim,
                                             valid, head_dim - chunk * chunk_columns);
    arrive();
#pragma unroll
    for (int i = 0; i < C::micro; ++i)
#pragma unroll
      for (int x = 0; x < C::columns; ++x) sum[i][x] = *element(shared.chunk[0], i, x);
  }
  // Multiplies by a factor and rounds to the output's type.
  static __device__ __forceinline__ void store_sum(const GradientShared<C>& shared, const Sum& sum,
                                                   Compute factor, Operand output, int chunk,
                                                   int head_dim) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < C::micro; ++i)
#pragma unroll
      for (int x = 0; x < C::columns; ++x) *element(shared.chunk[0], i, x) = sum[i][x];
    __syncthreads();
    const int column = threadIdx.x % chunk_columns, d = chunk * chunk_columns + column;
    if (d >= head_dim) return;
    const Rows out = shared.operands[output];
#pragma unroll 1
    for (int row = threadIdx.x / chunk_columns; row < C::side && row < out.valid;
         row += C::threads / chunk_columns) {
      const Compute x = shared.chunk[0][row * chunk_stride<Compute> + column] * factor;
      const int64_t at = row * out.stride + d;
      with_element<Compute>(out.element, [&](auto element) {
        using Element = decltype(element);
        reinterpret_cast<Element*>(const_cast<char*>(out.data))[at] = Dtype<Element>::store(x);
      });
    }
  }

 private:
  // The address of a thread's number in a chunk. A thread has whole 16-byte vectors of columns.
  static __device__ __forceinline__ Compute* element(Compute* chunk, int i, int x) {
    return chunk + (threadIdx.x / 16 + 16 * i) * chunk_stride<Compute> +
           x / C::vector * 16 * C::vector + threadIdx.x % 16 * C::vector + x % C::vector;
  }
  static __device__ __forceinline__ void copy(Compute* to, const Rows& rows, int chunk,
                                              int head_dim) {
    with_element<Compute>(rows.element, [&](auto element) {
      using Element = decltype(element);
      copy_chunk<Element, C::side, C::threads>(
          to, reinterpret_cast<const Element*>(rows.data) + chunk * chunk_columns, rows.stride,
          rows.valid, head_dim - chunk * chunk_columns);
    });
  }
  static __device__ __forceinline__ void arrive() {
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
  }
  static __device__ __forceinline__ void accumulate(const Sum& sum, Sum& total) {
#pragma unroll
    for (int i = 0; i < C::micro; ++i)
#pragma unroll
      for (int c = 0; c < C::columns; ++c) total[i][c] += sum[i][c];
  }
};

// Loads the statistics of a tile's rows from the scratch, by the first `side` threads. limit(i):
// how many keys of the chunk row i sees.
template <typename C, typename Limit>
__device__ __forceinline__ void load_rows(const BackwardArgs& args, const GradientShared<C>& shared,
                                          int64_t batch_head, int64_t row0, int64_t key0,
                                          Limit limit) {
  using Compute = typename C::Compute;
  const int i = threadIdx.x;
  if (i >= C::side) return;
  const Scratch<Compute> scratch(args);
  const int64_t row = row0 + i;
  const bool valid = row < args.query_len;
  const int64_t left = valid ? limit(row) - key0 : 0;
  shared.seen[i] = left < 0 ? 0 : left < C::side ? static_cast<int>(left) : C::side;
  shared.lse[i] = valid ? scratch.lse[batch_head * args.query_len + row] : Compute(0);
  shared.delta[i] = valid ? scratch.delta[batch_head * args.query_len + row] : Compute(0);
}

// The visibility of a chunk's keys. Positions rise, so a row sees a prefix of the keys.
struct KeyLimits {
  __device__ __forceinline__ explicit KeyLimits(const BackwardArgs& args)
      : q_map(args.device_maps ? args.device_maps[0] : args.q_map),
        k_map(args.device_maps ? args.device_maps[1] : args.k_map),
        query_len(args.query_len),
        key_len(args.key_len),
        borders_vary(args.borders_vary) {}

  // Keys that a row sees.
  __device__ __forceinline__ int64_t of_row(int64_t row) const {
    return borders_vary ? visible_keys(k_map, key_len, position(q_map, row)) : key_len;
  }
  // The first row that sees a key; the positions of earlier rows lie before the key.
  __device__ __forceinline__ int64_t first_row(int64_t key) const {
    return borders_vary ? visible_keys(q_map, query_len, position(k_map, key) - 1) : 0;
  }

  const baracuda_position_map q_map, k_map;
  const int64_t query_len, key_len;
  const bool borders_vary;
};

}  // namespace baracuda::simt
