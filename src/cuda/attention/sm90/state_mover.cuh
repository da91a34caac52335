// The state's way between memory and shared memory, by the copy engine.
#pragma once

#include "attention/sm90/barriers.cuh"
#include "attention/step_args.cuh"
#include "common/dependent_launch.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90 {

// Moves one warpgroup's state between memory and its buffer, in a single thread: out once a tile is
// done, and in again for the next while that one's products run.
template <typename C, bool First, bool Last>
class StateMover {
 public:
  __device__ __forceinline__ StateMover(const StepArgs& args, uint32_t shared,
                                        const Barriers<C>& barriers, int group)
      : args_(args),
        buffer_(shared + C::state_offset + group * C::state_bytes),
        full_(barriers.state_full(group)),
        done_(barriers.state_done(group)) {}

  // The n-th tile comes next.
  __device__ __forceinline__ void advance(uint32_t n, int batch_head, int row0) {
    if (n > 0) put_away(n - 1);
    bulk_stores_read();
    const int64_t left = args_.query_len - row0;
    bytes_ = left <= 0 ? 0 : (left < C::group_m ? static_cast<int>(left) : C::group_m) * row_bytes;
    address_ = static_cast<char*>(args_.state) +
               (batch_head * args_.query_len + row0) * row_bytes;
    if (First || bytes_ == 0) {
      mbarrier_arrive(full_);  // the buffer is free
    } else {
      await_grids_before();  // the step before wrote it
      mbarrier_arrive_expect(full_, bytes_);
      bulk_load(buffer_, address_, bytes_, full_);
    }
  }
  __device__ __forceinline__ void finish(uint32_t tiles) {
    if (tiles > 0) put_away(tiles - 1);
    bulk_stores_read();  // shared memory may go; the end of the grid sees to the rest
  }

 private:
  static constexpr int row_bytes = C::head_dim * 4;

  __device__ __forceinline__ void put_away(uint32_t n) const {
    mbarrier_wait(done_, parity_of<1>(n));
    if (!Last && bytes_ > 0) bulk_store(address_, buffer_, bytes_);
  }

  const StepArgs& args_;
  const uint32_t buffer_, full_, done_;
  char* address_ = nullptr;  // the tile's in memory
  int bytes_ = 0;
};

}  // namespace baracuda::sm90
