// The sm90a backward step: dK and dV of key tiles, and their share of dQ.
//
// A block keeps a tile of keys, and iterates over all query tiles that see these keys, in all heads
// of the group; then it takes its next tile of keys. dK and dV stay in registers. Warpgroup 0 is
// the producer; every other warpgroup owns 64 keys, or two tiles of 64 keys.
//
// Additions to dQ are most of the traffic of L2. So with pairs, the two blocks of a cluster have
// adjacent key tiles and iterate over the same query tiles. Each block computes dQ of every second
// query tile, over the keys of both blocks, and gets the other block's dS for it.
//
// At head_dim 256 the warpgroups and the two blocks share the work differently: wide_config.h.
#pragma once

#include "attention/backward/sm90/consumer.cuh"
#include "attention/backward/sm90/double_consumer.cuh"
#include "attention/backward/sm90/producer.cuh"
#include "common/dependent_launch.cuh"
#include "common/shared_access.cuh"

namespace baracuda::sm90::backward {

template <typename C>
__global__ void __launch_bounds__(C::threads, 1) step_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  const Barriers<C> barriers{shared + C::barrier_offset};
  const int warp = uniform(threadIdx.x / 32);
  launch_dependent_grids();
  if (warp == 0 && threadIdx.x % 32 == 0) {
    tma_prefetch_map(&args.k);
    tma_prefetch_map(&args.v);
    if (args.query_tiles > 0) {  // without query tiles these maps are empty
      tma_prefetch_map(&args.q);
      tma_prefetch_map(&args.dy);
    }
    barriers.init();
  }
  if constexpr (C::pair) {
    cluster_sync();  // the other block arrives at this block's barriers
  } else {
    __syncthreads();
  }
  await_previous_grids();
  if (warp < 4) {
    decrease_registers<C::producer_registers>();
    if (warp == 0) {
      Producer<C>(args, shared, barriers).run();
    } else if (warp == 1) {
      schedule_key_tiles(args, shared, barriers);
    } else if (warp == 2) {
      if constexpr (C::ordered) {
        add_dq_in_turn(args, shared, barriers, 0);
      } else if constexpr (stores_first<C>) {
        add_dq_storing(args, shared, barriers, 0);
      } else if constexpr (C::dq_stages > 0) {
        add_dq(args, shared, barriers);
      }
      if constexpr (C::sends_ds) exchange_ds(shared, barriers, args.group);
    } else if constexpr (C::ordered) {
      add_dq_in_turn(args, shared, barriers, 1);
    } else if constexpr (stores_first<C>) {
      add_dq_storing(args, shared, barriers, 1);
    }
  } else {
    if constexpr (C::consumer_registers > 0) increase_registers<C::consumer_registers>();
    if constexpr (C::halves == 2) {
      DoubleConsumer<C>(args, shared, barriers, warp / 4 - 1).run();
    } else {
      Consumer<C>(args, shared, barriers, warp / 4 - 1).run();
    }
  }
  if constexpr (C::pair) {
    __syncwarp();
    cluster_sync();  // the other block may still write here
  }
}

}  // namespace baracuda::sm90::backward
