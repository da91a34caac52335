// Swizzled shared-memory tiles for ldmatrix.
//
// A tile has rows of HeadDim 16-bit elements. The 16-byte chunks of a row are permuted within
// spans (8 chunks, or 4 if a row is an odd number of 64-byte units). So the eight chunks that eight
// lanes access together lie in eight different groups of four banks. They are the same chunk of
// eight rows (ldmatrix), or the chunks of one or two spans (a copy).
#pragma once

#include <stdint.h>

#include "common/cp_async.cuh"

namespace baracuda {

template <int HeadDim>
struct RowLayout {
  static_assert(HeadDim % 32 == 0, "a row must be whole 64-byte units");
  static constexpr int span = HeadDim % 64 == 0 ? 8 : 4;
  static constexpr int bytes = HeadDim * 2;
  static constexpr int chunks = HeadDim / 8;

  static __device__ __forceinline__ uint32_t swizzle(uint32_t row) {
    return span == 8 ? (row & 7) : (row >> 1 & 3);
  }
  // The byte offset of a chunk of a row. swizzle(row) repeats every 8 rows.
  static __device__ __forceinline__ uint32_t offset(uint32_t row, uint32_t chunk) {
    return row * bytes + ((chunk ^ swizzle(row)) << 4);
  }
  // The address `even` chunks after `address`, which offset() computed. `even` is an even number.
  // The chunk that offset() got must share no bit with even % span. Adding is then an xor, and xor
  // commutes with the swizzle. So adding a constant within a span costs one instruction.
  static __device__ __forceinline__ uint32_t advance(uint32_t address, int even) {
    return (address ^ (even % span << 4)) + even / span * span * 16;
  }
};

// Copies rows of a tile from global memory with all threads of the block. Rows from `valid` on are
// zero-filled: stale bits could be NaN, which a weight of zero would not remove.
template <int HeadDim, int Rows, int Threads>
struct TileCopy {
  using Layout = RowLayout<HeadDim>;
  static constexpr int rows_per_pass = Threads / Layout::span;
  static_assert(Rows % rows_per_pass == 0 && rows_per_pass % 8 == 0,
                "a tile must be whole passes, and a pass whole groups of eight rows");

  static __device__ __forceinline__ int row() { return threadIdx.x / Layout::span; }
  static __device__ __forceinline__ int chunk() { return threadIdx.x % Layout::span; }
  // The row that this thread copies first. It copies its rows in falling order, and then those of
  // the previous tile. So a loop from the last tile to the first needs one pointer and one stride.
  static __device__ __forceinline__ int last_row() { return Rows - rows_per_pass + row(); }

  // src points to this thread's first chunk in last_row(). On return it points to the same chunk in
  // the previous tile. step: bytes of rows_per_pass rows.
  static __device__ __forceinline__ void copy(uint32_t tile, const char*& src, int64_t step,
                                              int64_t valid) {
    const int rows = valid < Rows ? static_cast<int>(valid) : Rows;
    const uint32_t dst = tile + Layout::offset(row(), chunk());
#pragma unroll
    for (int i = Rows / rows_per_pass - 1; i >= 0; --i) {
      const bool inside = row() + i * rows_per_pass < rows;
#pragma unroll
      for (int j = 0; j < Layout::chunks / Layout::span; ++j) {
        cp_async_or_zero<16>(dst + i * rows_per_pass * Layout::bytes + j * Layout::span * 16,
                             src + j * Layout::span * 16, inside);
      }
      src -= step;
    }
  }
};

}  // namespace baracuda
