// The way of a query tile's output to global memory: each warp packs its 16 rows into shared memory,
// and TMA copies them from there. So a warp neither computes the addresses of rows nor waits for
// stores, and its next query tile begins earlier. Used where shared memory has room (config.h). If
// TMA cannot describe y, whose strides may be anything, the warp copies the rows.
//
// The rows are staged in one of two places (stages_in_q, config.h). In the place of the query tile's
// Q, they are copied by the warp that copies Q (producer.cuh), all 64 at a time. In a place of their
// own, each warp has its 16 rows copied.
#pragma once

#include "attention/forward/sm90/barriers.cuh"
#include "attention/forward/sm90/work_tiles.cuh"
#include "common/dtype.cuh"
#include "common/shared_access.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90 {

template <typename C>
class OutputStage {
  using Element = typename C::Element;
  static constexpr int rows = C::group_m / 4;  // of a warp
  static constexpr int block_bytes = C::y_rows * 128;

 public:
  // For query tile n.
  __device__ __forceinline__ OutputStage(const HopperArgs& args, uint32_t shared, int group,
                                         uint32_t n)
      : args_(args), group_(group), rows_(shared + place(group, n)) {}

  // Stores the warp's rows of o * factor. factor: of the lane's two rows. TMA leaves out the rows
  // past the end of y.
  __device__ __forceinline__ void store(const float (&o)[C::head_dim / 2],
                                        const float (&factor)[2], const WorkTile<C>& tile) const {
    const int lane = threadIdx.x % 32;
    if constexpr (C::stages_in_q) {
      named_barrier_sync(1 + group_, 128);  // all warps are done with the products that read Q
    } else {
      drain();
      __syncwarp();
    }
    // Lane i passes the address of row i % 16, in the left or the right eight of 16 columns.
    const uint32_t row = rows_ + lane % rows * 128 + ((lane / rows ^ lane % 8) << 4);
#pragma unroll
    for (int j = 0; j < C::head_dim / 16; ++j) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = Dtype<Element>::pack(o[8 * j + 2 * i] * factor[i % 2],
                                        o[8 * j + 2 * i + 1] * factor[i % 2]);
      shared_store_matrices((row ^ (j % 4 * 32)) + j / 4 * block_bytes, words);
    }
    const int row0 = tile.row0() + threadIdx.x % 128 / 32 * rows;
    if (!args_.maps_y) return copy(tile, row0);
    shared_store_fence();
    if constexpr (C::stages_in_q) return;
    __syncwarp();
    if (lane == 0) {
#pragma unroll
      for (int block = 0; block < C::column_blocks; ++block)
        tma_store_4d(&args_.y, rows_ + block * block_bytes, 64 * block, row0, tile.head(),
                     tile.batch());
      tma_commit();
    }
  }

  // Waits until TMA has read what the warp stored. A block must not end earlier.
  __device__ __forceinline__ void drain() const {
    if (threadIdx.x % 32 == 0) tma_wait_read<0>();
  }

 private:
  static __device__ __forceinline__ uint32_t place(int group, uint32_t n) {
    const int warp = threadIdx.x % 128 / 32;
    if constexpr (C::stages_in_q) return C::q_offset(group, n) + warp * rows * 128;
    return C::y_offset + (group * 4 + warp) * C::column_blocks * block_bytes;
  }
  __device__ __forceinline__ void copy(const WorkTile<C>& tile, int row0) const {
    const StepArgs& step = args_.step;
    const int lane = threadIdx.x % 32, chunk = lane % 8;
    Element* const y = static_cast<Element*>(step.y) + tile.batch() * step.y_strides.batch +
                       tile.head() * step.y_strides.head + chunk * 8;
    __syncwarp();
#pragma unroll 1
    for (int i = lane / 8; i < rows * C::column_blocks; i += 4) {
      const int row = i % rows, block = i / rows;
      const int64_t at = int64_t{row0} + row;
      if (at >= step.query_len) continue;
      const uint32_t from = rows_ + block * block_bytes + row * 128 + ((chunk ^ row % 8) << 4);
      *reinterpret_cast<float4*>(y + at * step.y_strides.seq + 64 * block) = shared_load_four(from);
    }
    __syncwarp();
  }

  const HopperArgs& args_;
  const int group_;
  const uint32_t rows_;
};

}  // namespace baracuda::sm90
