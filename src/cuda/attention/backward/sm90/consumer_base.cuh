// What both kinds of consumer warpgroups of the sm90a backward kernel share: the loop over key
// tiles, the parts of a query tile that do not depend on how many keys a warpgroup has, and where
// operands lie in shared memory.
#pragma once

#include "attention/backward/gradient_rows.cuh"
#include "attention/backward/shift.cuh"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/dq_maker.cuh"
#include "attention/backward/sm90/key_tiles.cuh"
#include "attention/backward/sm90/scores.cuh"
#include "common/dtype.cuh"
#include "common/uniform.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class ConsumerBase {
 public:
  __device__ __forceinline__ ConsumerBase(const Args& args, uint32_t shared,
                                          const Barriers<C>& barriers, int group)
      : args_(args),
        shared_(shared),
        barriers_(barriers),
        group_(group),
        dq_(args, shared, barriers, group) {
    if constexpr (C::shifts)
      shift_ = args.query_tiles > 0 ? static_cast<float>(shift_of(args.norms)) : 0.0f;
  }

 protected:
  using Element = typename C::Element;
  using Queries = QuerySequence<C::ordered>;
  static constexpr int scores = C::block_m / 2;    // accumulators of S and of dP
  static constexpr int columns = C::head_dim / 2;  // of dK and of dV
  static constexpr int steps = C::block_m / 16;

  // Calls process(slot, count, item) for each key tile. It begins with await_keys(), and calls
  // end_key_tile() before it stores dK and dV.
  template <typename Process>
  __device__ __forceinline__ void for_each_key_tile(const Process& process) {
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      mbarrier_wait(barriers_.slot_full(stage_of<C::stages>(item)), parity_of<C::stages>(item));
      const WorkTile<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) return dq_.compute_last_dq(shift_);
      k_stage_ = stage_of<C::k_stages>(item);
      process(slot, count, item);
    }
  }
  __device__ __forceinline__ void await_keys(uint32_t item) const {
    mbarrier_wait(barriers_.k_full(k_stage_), parity_of<C::k_stages>(item));
    mbarrier_wait(barriers_.v_full(), parity_of<1>(item));
  }
  // After all reads of the slot.
  __device__ __forceinline__ void end_key_tile(int count, uint32_t item) {
    __syncwarp();
    release(barriers_.slot_empty(stage_of<C::stages>(item)));
    // With two buffers of K, the last dQ is computed in the next key tile.
    if (C::k_stages == 1 || count == 0) dq_.compute_last_dq(shift_);
    if (count == 0) release(barriers_.k_empty(k_stage_));
  }
  // The first of the 16 keys of a tile whose rows of dK and dV this thread's warp stores.
  __device__ __forceinline__ int warps_first_key() const {
    return group_ * C::group_n + threadIdx.x % 128 / 32 * 16;
  }
  __device__ __forceinline__ float unshift() const { return unshift_of<C>(shift_); }

  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }

  __device__ __forceinline__ Queries sequence_of(const WorkTile<C>& slot, int count) const {
    const int head0 = uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
    return {{uniform(slot.begin()), uniform(slot.step())}, args_.group, count,
            head0 * args_.query_tiles, args_.query_tiles};
  }
  // True if no row of a head's m-th query tile sees a key of this warpgroup.
  __device__ __forceinline__ bool is_hidden(int m) const {
    return (m + 1) * C::block_m <= group_first_row_;
  }
  // Skips fully masked query tiles, and calls process(queries) at any other. process() advances
  // queries to the next fully masked tile, or to the end.
  template <typename Process>
  __device__ __forceinline__ void for_each_run(Queries queries, const Process& process) {
#pragma unroll 1
    while (queries.more()) {
      if (is_hidden(queries.tile())) {
        skip_query_tile();
        dq_.advance_to(queries.tile_of_all(), k_stage_);
        queries.advance();
      } else {
        process(queries);
      }
    }
  }
  // Skips the next query tile, which is fully masked.
  __device__ __forceinline__ void skip_query_tile() {
    uint32_t ds[steps][4];
#pragma unroll
    for (int k = 0; k < steps; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) ds[k][i] = 0;
    const int stage = stage_of<C::stages>(dq_.count());
    mbarrier_wait(barriers_.q_full(stage), parity_of<C::stages>(dq_.count()));
    mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(dq_.count()));
    release(barriers_.q_empty(stage));
    release(barriers_.dy_empty(stage));
    if constexpr (C::halves == 2) {
      dq_.await_room();
      dq_.store_half(ds, 0);
      dq_.store_half(ds, 1);
      dq_.tell();
    } else {
      dq_.publish_ds(ds);
    }
    dq_.compute_previous_dq_if_owned(shift_);
  }
  // Waits for the products that were issued, releases the stage of Q and dO, and computes dQ of the
  // previous query tile if it is this warpgroup's turn.
  __device__ __forceinline__ void end_query_tile(int stage) {
    const auto after_dk = [&] {
      release(barriers_.dy_empty(stage));
      release(barriers_.q_empty(stage));
    };
    if (dq_.owns_previous_dq()) {
      dq_.await_previous_ds();
      dq_.compute_previous_dq(shift_, after_dk);
    } else {
      wgmma_wait<0>();
      after_dk();
    }
  }

  static __device__ __forceinline__ void compute_ds(float (&dp)[scores], const float (&p)[scores]) {
#pragma unroll
    for (int i = 0; i < scores; ++i) dp[i] *= p[i];
  }
  static __device__ __forceinline__ void pack_all(const float (&x)[scores],
                                                  uint32_t (&operand)[steps][4]) {
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(x, k, operand[k]);
  }
  // A fragments with ones in the columns that hold a row's lse (ones) or its delta (delta_ones).
  static __device__ __forceinline__ void make_ones(uint32_t (&ones)[4], uint32_t (&delta_ones)[4]) {
    if constexpr (C::apart) {
      ones[0] = ones[1] = delta_ones[0] = delta_ones[1] = 0x3f803f80u;
      ones[2] = ones[3] = delta_ones[2] = delta_ones[3] = 0;
      return;
    }
    // Volatile, so that the fragments are recomputed: keeping them would take too many registers.
    uint32_t pair;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(pair));
    pair %= 4;
    const uint32_t parts = pair % 2 == 0 ? 0x3f803f80u : 0x3f80u;
    ones[0] = ones[1] = pair < 2 ? parts : 0;
    delta_ones[0] = delta_ones[1] = pair < 2 ? 0 : parts;
    ones[2] = ones[3] = delta_ones[2] = delta_ones[3] = 0;
    pin_registers(ones);
    pin_registers(delta_ones);
  }

  // This warpgroup's keys of K and V, and the pipeline stages of query tiles.
  __device__ __forceinline__ uint32_t k_keys() const {
    return shared_ + C::k_offset + k_stage_ * C::kv_bytes + group_ * C::group_n * 128;
  }
  __device__ __forceinline__ uint32_t v_keys() const {
    return shared_ + C::v_offset + group_ * C::group_n * 128;
  }
  __device__ __forceinline__ uint32_t q_tile(int stage) const {
    return shared_ + C::q_offset + stage * C::q_bytes;
  }
  __device__ __forceinline__ uint32_t dy_tile(int stage) const {
    return shared_ + C::dy_offset + stage * C::q_bytes;
  }
  __device__ __forceinline__ uint32_t statistics(int stage) const {
    return shared_ + C::statistics_offset + stage * C::statistics_bytes;
  }
  __device__ __forceinline__ uint32_t deltas(int stage) const {
    return statistics(stage) + (C::apart ? C::statistics_bytes / 2 : 0);
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
  DqMaker<C> dq_;
  float shift_;  // of P, see shift.cuh; an integer
  int k_stage_;
  int group_first_row_;  // the first row that sees the warpgroup's first key
};

}  // namespace baracuda::sm90::backward
