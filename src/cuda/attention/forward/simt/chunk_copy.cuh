// Chunks of 64 columns of an operand in shared memory, in the type of the arithmetic.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "common/cp_async.cuh"
#include "common/dtype.cuh"

namespace baracuda::simt {

constexpr int chunk_columns = 64;

// Rows are padded by 16 bytes: an odd number of 16-byte units puts eight rows in different banks.
template <typename Compute>
constexpr int padding = 16 / static_cast<int>(sizeof(Compute));

template <typename Compute>
constexpr int chunk_stride = chunk_columns + padding<Compute>;

// The vector type of reads from a chunk.
template <typename Compute>
struct alignas(16) Vector {
  Compute x[16 / sizeof(Compute)];
};

// Copies Rows x 64 elements at src with all threads. Rows from valid_rows on and columns from
// valid_columns on become zero. Only element alignment is assumed. The copy is complete after
// cp_async_commit, cp_async_wait and a barrier.
template <typename Element, int Rows, int Threads>
__device__ __forceinline__ void copy_chunk(typename Dtype<Element>::Compute* chunk,
                                           const Element* src, int64_t row_stride,
                                           int64_t valid_rows, int64_t valid_columns) {
  using Compute = typename Dtype<Element>::Compute;
  constexpr int rows_per_pass = Threads / chunk_columns;
  static_assert(Threads % chunk_columns == 0 && Rows % (8 * rows_per_pass) == 0, "uneven copy");
  const int column = threadIdx.x % chunk_columns;
  const int row = threadIdx.x / chunk_columns;
  const int rows = column >= valid_columns ? 0
                   : valid_rows < Rows     ? static_cast<int>(valid_rows)
                                           : Rows;
  src += row * row_stride + column;
  Compute* dst = chunk + row * chunk_stride<Compute> + column;
  if constexpr (std::is_same_v<Element, Compute>) {
#pragma unroll 8
    for (int i = 0; i < Rows; i += rows_per_pass) {
      cp_async_or_zero<sizeof(Element)>(shared_address(dst + i * chunk_stride<Compute>), src,
                                        row + i < rows);
      src += rows_per_pass * row_stride;
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < Rows; i += 8 * rows_per_pass) {
      Compute x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        x[j] = row + i + j * rows_per_pass < rows ? Dtype<Element>::load(*src) : Compute(0);
        src += rows_per_pass * row_stride;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) dst[(i + j * rows_per_pass) * chunk_stride<Compute>] = x[j];
    }
  }
}

}  // namespace baracuda::simt
