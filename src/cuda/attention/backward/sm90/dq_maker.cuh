// A warpgroup's part in dQ, which is a sum over the keys of all warpgroups. Each warpgroup stores
// its dS in shared memory. The warpgroups take turns: one of them computes dQ of a query tile. In
// pairs it also adds dQ to global memory; otherwise a producer warp does, from shared memory. dQ of
// a query tile is computed one tile later.
#pragma once

#include "attention/backward/shift.cuh"
#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/key_tiles.cuh"
#include "attention/backward/sm90/scores.cuh"
#include "common/cluster.cuh"
#include "common/global_access.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class DqMaker {
  using Element = typename C::Element;
  static constexpr int columns = C::head_dim / 2;  // accumulators
  static constexpr int steps = C::block_m / 16;

 public:
  __device__ __forceinline__ DqMaker(const Args& args, uint32_t shared,
                                     const Barriers<C>& barriers, int group)
      : args_(args), shared_(shared), barriers_(barriers), group_(group) {
    const int lane = threadIdx.x % 32;
    const int key =
        group * C::group_n + threadIdx.x % 128 / 32 * 16 + (lane / 8 & 1) * 8 + lane % 8;
    ds_store_ = shared + C::ds_offset + key * 128 + ((lane / 16 ^ lane % 8) << 4);
  }

  // The number of query tiles so far.
  __device__ __forceinline__ uint32_t count() const { return n_; }

  // Stores dS of this query tile and this warpgroup's keys, once the earlier dS there has been
  // consumed. Then signals the warpgroup that computes dQ, or the warp that sends dS.
  __device__ __forceinline__ void publish_ds(const uint32_t (&ds)[steps][4]) const {
    store_ds(ds);
    tell();
  }
  // The same in parts, each for one of the warpgroup's tiles of keys. Call await_room() before.
  __device__ __forceinline__ void await_room() const {
    const int stage = stage_of<own_ds_stages>(turn_of(n_));
    mbarrier_wait(barriers_.ds_empty(stage), parity_of<own_ds_stages>(turn_of(n_)) ^ 1);
  }
  __device__ __forceinline__ void store_half(const uint32_t (&ds)[steps][4], int half) const {
    const uint32_t to = ds_store_ + stage_of<own_ds_stages>(turn_of(n_)) * C::ds_bytes +
                        half * C::half_n * 128;
#pragma unroll
    for (int k = 0; k < steps; ++k) shared_store_matrices(to ^ 32 * k, ds[k]);
    shared_store_fence();
  }
  __device__ __forceinline__ void tell() const {
    if (!is_of_this_block(n_)) {
      __syncwarp();
      release(barriers_.outgoing_ds_full());
    } else if (owner_of(n_) != group_) {
      named_barrier_arrive(barriers_.ds_full(stage_of<own_ds_stages>(turn_of(n_))),
                           128 * C::consumers);
    }
  }
  // True if dQ of the previous query tile is pending and belongs to this warpgroup.
  __device__ __forceinline__ bool owns_previous_dq() const {
    return previous_k_stage_ >= 0 && makes_dq_of(n_ - 1);
  }
  __device__ __forceinline__ void await_previous_ds() const {
    const uint32_t turn = turn_of(n_ - 1);
    named_barrier_sync(barriers_.ds_full(stage_of<own_ds_stages>(turn)), 128 * C::consumers);
    if constexpr (C::pair) mbarrier_wait(barriers_.remote_ds_full(turn % 2), turn / 2 & 1);
  }
  // Computes and adds dQ of the previous query tile, after an update of dK that may be in flight.
  // after_dk is called once that update is done. On return all products are done. shift: the shift
  // of P.
  template <typename AfterDk>
  __device__ __forceinline__ void compute_previous_dq(float shift, AfterDk after_dk) const {
    const uint32_t n = n_ - 1;
    float dq[columns];
    const int stage = stage_of<own_ds_stages>(turn_of(n));
    const uint64_t a = wgmma_descriptor(shared_ + C::ds_offset + stage * C::ds_bytes, C::ds_bytes);
    const uint64_t b = wgmma_descriptor(k_tile(previous_k_stage_), C::kv_block_bytes);
    pin_registers(dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i)
      wgmma_mn_major<Element>(dq, a + (i * 2048 >> 4), b + (i * 2048 >> 4), i > 0);
    if constexpr (C::pair) {
      const uint64_t remote_ds = wgmma_descriptor(shared_ + C::remote_ds_offset, C::ds_bytes);
      const uint64_t remote_k = wgmma_descriptor(k_tile(1), C::kv_block_bytes);
#pragma unroll
      for (int i = 0; i < C::block_n / 16; ++i)
        wgmma_mn_major<Element>(dq, remote_ds + (i * 2048 >> 4), remote_k + (i * 2048 >> 4), 1);
    }
    wgmma_commit();
    wgmma_wait<1>();
    after_dk();
    wgmma_wait<0>();
    pin_registers(dq);
    release(barriers_.ds_empty(stage));
    if constexpr (C::pair) {
      if (threadIdx.x % 32 == 0)
        mbarrier_arrive_at(address_at(cluster_rank() ^ 1, barriers_.remote_ds_empty()));
    }
    const float factor = unshift_of<C>(shift);
    if constexpr (C::dq_stages > 0) {
      const int buffer = stage_of<C::dq_stages>(n);
      const uint32_t at =
          shared_ + C::dq_offset + buffer * 4 * C::dq_floats + threadIdx.x % 128 * 16;
      await_turn(n);
      each_four(dq, factor, [&](int j, float4 x) { shared_store(at + j * 2048, x); });
      shared_store_fence();
      __syncwarp();
      release(barriers_.dq_full(buffer));
    } else {
      float4* const to =
          reinterpret_cast<float4*>(args_.dq + int64_t{previous_tile_} * C::dq_floats) +
          threadIdx.x % 128;
      each_four(dq, factor, [&](int j, float4 x) { add_in_memory(to + j * 128, x); });
    }
  }
  __device__ __forceinline__ void compute_previous_dq_if_owned(float shift) const {
    if (!owns_previous_dq()) return;
    await_previous_ds();
    compute_previous_dq(shift, [] {});
  }
  // The same after the last query tile; then releases K.
  __device__ __forceinline__ void compute_last_dq(float shift) {
    compute_previous_dq_if_owned(shift);
    if (previous_k_stage_ >= 0) release(barriers_.k_empty(previous_k_stage_));
    previous_k_stage_ = -1;
  }
  // Makes this query tile (counted over all heads) the previous one. If it is the first of its key
  // tile, releases the previous K.
  __device__ __forceinline__ void advance_to(int tile, int k_stage) {
    if (previous_k_stage_ >= 0 && previous_k_stage_ != k_stage)
      release(barriers_.k_empty(previous_k_stage_));
    previous_k_stage_ = k_stage;
    previous_tile_ = tile;
    ++n_;
  }

 private:
  static constexpr int own_ds_stages = C::pair ? 2 : C::ds_stages;

  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }

  // Blocks of a pair alternate, and the warpgroups of a block alternate; a stage of dS belongs to
  // one of them.
  __device__ __forceinline__ bool is_of_this_block(uint32_t n) const {
    return !C::pair || n % 2 == cluster_rank();
  }
  static __device__ __forceinline__ uint32_t turn_of(uint32_t n) { return C::pair ? n / 2 : n; }
  static __device__ __forceinline__ int owner_of(uint32_t n) { return turn_of(n) % C::consumers; }
  __device__ __forceinline__ bool makes_dq_of(uint32_t n) const {
    return is_of_this_block(n) && owner_of(n) == group_;
  }

  __device__ __forceinline__ void store_ds(const uint32_t (&ds)[steps][4]) const {
    const uint32_t turn = turn_of(n_);
    uint32_t to = ds_store_;
    if (is_of_this_block(n_)) {
      const int stage = stage_of<own_ds_stages>(turn);
      mbarrier_wait(barriers_.ds_empty(stage), parity_of<own_ds_stages>(turn) ^ 1);
      to += stage * C::ds_bytes;
    } else {
      mbarrier_wait(barriers_.outgoing_ds_empty(), turn & 1 ^ 1);
      to += C::outgoing_ds_offset - C::ds_offset;
    }
#pragma unroll
    for (int k = 0; k < steps; ++k) shared_store_matrices(to ^ 32 * k, ds[k]);
    shared_store_fence();
  }
  __device__ __forceinline__ uint32_t k_tile(int stage) const {
    return shared_ + C::k_offset + stage * C::kv_bytes;
  }
  // Waits until the buffer for dQ of the n-th query tile has been read. The adding warp signals
  // that for every tile but the first dq_stages.
  __device__ __forceinline__ void await_turn(uint32_t n) const {
    if (n < C::dq_stages) return;
    const uint32_t turns = (n - C::dq_stages) / C::consumers;  // earlier turns of this warpgroup
    mbarrier_wait(barriers_.dq_turn(group_), turns & 1);
  }
  template <typename F>
  static __device__ __forceinline__ void each_four(const float (&d)[columns], float factor, F f) {
    const auto out = [&](float x) { return C::shifts ? x * factor : x; };
#pragma unroll
    for (int j = 0; j < columns / 4; ++j)
      f(j, make_float4(out(d[4 * j]), out(d[4 * j + 1]), out(d[4 * j + 2]), out(d[4 * j + 3])));
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
  uint32_t ds_store_;  // address of this lane's row of a dS matrix, in the first stage
  uint32_t n_ = 0;
  // The stage of K of the previous query tile, whose dQ is pending; or -1.
  int previous_k_stage_ = -1;
  int previous_tile_;  // counted over all heads
};

}  // namespace baracuda::sm90::backward
