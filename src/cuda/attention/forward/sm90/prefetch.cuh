// Prefetches data of the next query tile into L2, by ordinary instructions. A prefetch by TMA would
// be queued with the copies of K and V, and would delay copies that are needed now.
#pragma once

#include "attention/forward/sm90/work_tiles.cuh"
#include "common/prefetch.cuh"

namespace baracuda::sm90 {

// Prefetches the state of a query tile in the last step of a ring, the only step that always loads
// o_acc. The prefetch is spread over the key tiles of the previous query tile. Blocks end their
// query tiles at about the same time, and would otherwise all load their state at once.
template <typename C>
class StatePrefetch {
  static constexpr int sector = 32, step = 32 * sector;  // bytes per lane and per warp

 public:
  // Spreads the prefetch over about `calls` calls of issue_part().
  __device__ __forceinline__ void begin(const StepArgs& args, const Tile& tile, int calls) {
    const int64_t left = args.query_len - tile.row0;
    const int rows = left < C::block_m ? static_cast<int>(left) : C::block_m;
    const int64_t row = tile.batch_head * args.query_len + tile.row0;
    const char* state = static_cast<const char*>(args.state);
    const int lane = threadIdx.x % 32;
    next_ = state + row * C::head_dim * 4 + lane * sector;
    left_ = rows * C::head_dim * 4 - lane * sector;
    instructions_per_call_ = (rows * C::head_dim * 4 / step + calls) / calls;
    // Half of the lanes prefetch the row maxima, the other half the row sums.
    const int64_t sums = lane < 16 ? 0 : args.batch_heads * args.query_len;
    const int first = lane % 16 * (sector / 4);
    if (first < rows)
      prefetch_l2(state +
                  (args.batch_heads * args.query_len * C::head_dim + sums + row + first) * 4);
  }

  __device__ __forceinline__ void issue_part() {
#pragma unroll 1
    for (int i = 0; i < instructions_per_call_; ++i) {
      if (left_ > 0) prefetch_l2(next_);
      next_ += step;
      left_ -= step;
    }
  }

 private:
  const char* next_ = nullptr;
  int left_ = 0;  // bytes from next_ to the end
  int instructions_per_call_ = 0;
};

// Prefetches a warpgroup's rows of Q.
template <typename C>
__device__ __forceinline__ void prefetch_queries(const StepArgs& args, int batch, int head,
                                                 int row0) {
  constexpr int sectors = C::head_dim * 2 / 32;  // in a row
  const int lane = threadIdx.x % 32;
  const char* q = static_cast<const char*>(args.q) +
                  (batch * args.q_strides.batch + head * args.q_strides.head) * 2 +
                  lane % sectors * 32;
#pragma unroll 1
  for (int i = lane / sectors; i < C::group_m; i += 32 / sectors) {
    const int64_t row = int64_t{row0} + i;
    if (row < args.query_len) prefetch_l2(q + row * args.q_strides.seq * 2);
  }
}

}  // namespace baracuda::sm90
