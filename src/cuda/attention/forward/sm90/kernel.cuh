// The sm90a attention step: wgmma on tiles that the copy engine brings in.
//
// A block is resident for the whole step. Warpgroup 0 copies; every other warpgroup owns 64 query
// rows. The steps of a ring overlap: a step knows nothing of the one before until it has its own
// keys' share of a tile, and has it added to the state that that one left.
#pragma once

#include "attention/forward/sm90/consumer.cuh"
#include "attention/forward/sm90/producer.cuh"
#include "common/cp_async.cuh"
#include "common/dependent_launch.cuh"

namespace baracuda::sm90 {

template <typename C, bool First, bool Last>
__global__ void __launch_bounds__(C::threads, 1)
    step_kernel(const __grid_constant__ HopperArgs args) {
  extern __shared__ __align__(1024) char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  const Barriers<C> barriers{shared + C::barrier_offset};
  // The same in all lanes, which the compiler cannot see.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const bool leads = threadIdx.x % 32 == 0;
  launch_dependent_grids();
  // The step before may still be running: up to here, or where the operands were there before it,
  // until its state is wanted.
  if (!args.step.follows) await_grids_before();
  // Side by side, all that comes before the first copies.
  Work<C, First, Last> work(args);
  bool more = false;
  if (warp < 4) {
    if (leads && args.step.key_len > 0) {  // else the maps are empty
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
  __syncthreads();
  if (warp < 4) {
    give_registers_back<C::producer_registers>();
    if (warp == 0) {
      KeyProducer<C, First, Last>(args, shared, barriers).run(work, more);
    } else if (warp <= C::consumers) {
      produce_queries<C, First, Last>(args, shared, barriers, warp - 1, work, more);
    }
  } else {
    take_registers<C::consumer_registers>();
    Consumer<C, First, Last>(args.step, shared, barriers, warp / 4 - 1).run();
  }
  // Whoever waits for this grid waits for those before it too, also where it had nothing to do.
  await_grids_before();
}

}  // namespace baracuda::sm90
