// The sm90a attention step: wgmma on tiles that TMA loads.
//
// Blocks stay resident for the whole step. Warpgroup 0 is the producer; every other warpgroup owns
// 64 query rows. Two steps can overlap (overlaps_previous(), launch.cuh). For each query tile, a
// step first computes the partial result over its own keys. Only then does it wait for the previous
// step, and add the partial result to the state (state.cuh).
#pragma once

#include <type_traits>

#include "attention/forward/sm90/consumer.cuh"
#include "attention/forward/sm90/consumer_ahead.cuh"
#include "attention/forward/sm90/producer.cuh"
#include "common/cluster.cuh"
#include "common/dependent_launch.cuh"
#include "common/shared_access.cuh"
#include "common/uniform.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
__global__ void __launch_bounds__(C::threads, 1)
    step_kernel(const __grid_constant__ HopperArgs args) {
  extern __shared__ __align__(1024) char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  const Barriers<C> barriers{shared + C::barrier_offset};
  const int warp = uniform(threadIdx.x / 32);
  const bool leads = threadIdx.x % 32 == 0;
  launch_dependent_grids();
  // FOLLOWS (attention.h) is the caller's promise that everything that the step reads, except the
  // state, is complete when its blocks start. A step with FOLLOWS waits only when it needs the
  // state. Any other step waits here for the previous kernel.
  if (!args.step.follows) await_previous_grids();
  // Several warps prepare the first copies at the same time.
  WorkTileScheduler<C, First, Last> work(args);
  bool more = false;
  if (warp < 4) {
    if (leads && args.step.key_len > 0) {  // else the tensor maps may be unset
      if (warp == 0) {
        tma_prefetch_map(&args.k);
        tma_prefetch_map(&args.v);
      } else if (warp == 1) {
        tma_prefetch_map(&args.q);
      }
    }
    more = work.next(args);
  } else if (warp == 4 && leads) {
    barriers.init();
  }
  if constexpr (C::cluster > 1) {
    cluster_sync();  // the other block arrives at this block's barriers
  } else {
    __syncthreads();
  }
  if (warp < 4) {
    decrease_registers<C::producer_registers>();
    if (warp == 0) {
      KeyProducer<C, First, Last>(args, shared, barriers).run(work, more);
    } else if (warp <= C::consumers) {
      produce_queries<C, First, Last>(args, shared, barriers, warp - 1, work, more);
    }
  } else {
    increase_registers<C::consumer_registers>();
    using Consumers = std::conditional_t<C::scores_ahead, ConsumerAhead<C, First, Last>,
                                         Consumer<C, First, Last>>;
    Consumers(args, shared, barriers, warp / 4 - 1).run();
  }
  if constexpr (C::cluster > 1) {
    __syncwarp();
    cluster_sync();  // the other block may still arrive at this block's barriers
  }
  // A grid that waits for this one relies on all earlier grids having ended, too. So every block
  // waits for them, even a block without work.
  await_previous_grids();
}

}  // namespace baracuda::sm90
