// The computing side of the sm90a backward kernel: a warpgroup with 64 keys at a time.
//
// S and dP are made transposed, a row for each key: P and dS then go from the accumulators to the A
// operands of dV and dK without leaving registers, and what a key's mask is stays in two registers.
// dQ sums over the keys of all warpgroups: dS goes to shared memory, and the warpgroups take turns
// to make dQ of a query tile and to add it to global memory.
#pragma once

#include "attention/backward/sm90/barriers.cuh"
#include "attention/backward/sm90/gradients.cuh"
#include "attention/backward/sm90/schedule.cuh"
#include "attention/backward/sm90/scores.cuh"
#include "attention/backward/sm90/shift.cuh"
#include "common/cluster.cuh"
#include "common/dtype.cuh"
#include "common/global_access.cuh"
#include "common/uniform.cuh"
#include "common/wgmma.cuh"

namespace baracuda::sm90::backward {

template <typename C>
class Consumer {
  using Element = typename C::Element;
  static constexpr int scores = C::block_m / 2;   // accumulators of S and of dP
  static constexpr int columns = C::head_dim / 2;  // of dK, of dV, and of dQ
  static constexpr int steps = C::block_m / 16;

 public:
  __device__ __forceinline__ Consumer(const Args& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : args_(args), shared_(shared), barriers_(barriers), group_(group) {
    const int lane = threadIdx.x % 32;
    const int key =
        group * C::group_n + threadIdx.x % 128 / 32 * 16 + (lane / 8 & 1) * 8 + lane % 8;
    ds_store_ = shared + C::ds_offset + key * 128 + ((lane / 16 ^ lane % 8) << 4);
    if constexpr (C::shifts)
      shift_ = args.query_tiles > 0 ? static_cast<float>(shift_of(args.norms)) : 0.0f;
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      const int stage = stage_of<C::stages>(item);
      mbarrier_wait(barriers_.slot_full(stage), parity_of<C::stages>(item));
      const Slot<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) return make_last_dq();
      float dk[columns], dv[columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) dk[i] = dv[i] = 0.0f;
      k_stage_ = stage_of<C::k_stages>(item);
      read_first_rows();
      mbarrier_wait(barriers_.k_full(k_stage_), parity_of<C::k_stages>(item));
      mbarrier_wait(barriers_.v_full(), parity_of<1>(item));
      if (count > 0) go_over_queries(dk, dv, slot, count);
      release(barriers_.v_empty());
      const GradientRows<C> rows(args_, slot, group_);
      __syncwarp();
      release(barriers_.slot_empty(stage));
      // With two buffers of K the last dQ waits for the next key tile's first.
      if (C::k_stages == 1 || count == 0) make_last_dq();
      if (count == 0) release(barriers_.k_empty(k_stage_));
      rows.store(args_.dk, args_.dk_strides, dk, args_.scale * unshift());
      rows.store(args_.dv, args_.dv_strides, dv, unshift());
    }
  }

 private:
  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }

  __device__ __forceinline__ void read_first_rows() {
    const FirstRows<C> rows(shared_);
    const int key = group_ * C::group_n + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    first_row_[0] = rows.get(key) - 2 * (threadIdx.x % 4);
    first_row_[1] = rows.get(key + 8) - 2 * (threadIdx.x % 4);
    group_first_row_ = uniform(rows.get(group_ * C::group_n));
    __syncwarp();
    release(barriers_.rows_taken());
  }
  __device__ __forceinline__ void go_over_queries(float (&dk)[columns], float (&dv)[columns],
                                                  const Slot<C>& slot, int count) {
    const QueryTiles queries{uniform(slot.begin()), uniform(slot.step())};
    const int whole_from = uniform(slot.whole_from());
    const int head0 = uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
    each_query_tile<C::ordered>(args_.group, count, [&](int g, int i) {
      const int tile0 = (head0 + g) * args_.query_tiles;
      const int m = queries.at(i);
      if ((m + 1) * C::block_m <= group_first_row_) {
        pass_by(tile0 + m);
      } else {
        fold(dk, dv, tile0, m, m * C::block_m < whole_from);
      }
    });
  }

  // Takes in the n_-th query tile, m of the head whose first is tile0. Only under a mask, or where
  // the tile has fewer keys than it has room for, are there rows that do not see all of it. (Two
  // loops, one of them without masks, are more than ptxas has registers for.)
  __device__ __forceinline__ void fold(float (&dk)[columns], float (&dv)[columns], int tile0, int m,
                                       bool masked) {
    float s[scores], dp[scores];
    uint32_t p[steps][4], ds[steps][4];
    const int stage = stage_of<C::stages>(n_);
    const uint32_t parity = parity_of<C::stages>(n_);
    const uint32_t q_tile = shared_ + C::q_offset + stage * C::q_bytes;
    const uint32_t dy_tile = shared_ + C::dy_offset + stage * C::q_bytes;
    const uint32_t statistics = shared_ + C::statistics_offset + stage * C::statistics_bytes;
    const uint32_t keys = group_ * C::group_n * 128;
    mbarrier_wait(barriers_.q_full(stage), parity);
    pin_registers(s);
    pin_registers(dp);
    // A fragments of ones in the columns that hold a row's lse, and its delta.
    uint32_t ones[4] = {0, 0, 0, 0}, delta_ones[4] = {0, 0, 0, 0};
    // Volatile: kept from tile to tile the fragments are more than there is room for.
    uint32_t pair;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(pair));
    pair %= 4;
    const uint32_t parts = pair % 2 == 0 ? 0x3f803f80u : 0x3f80u;
    ones[0] = ones[1] = pair < 2 ? parts : 0;
    delta_ones[0] = delta_ones[1] = pair < 2 ? 0 : parts;
    pin_registers(ones);
    pin_registers(delta_ones);
    wgmma_fence();
    issue_scores<C>(s, k_tile(k_stage_) + keys, q_tile, ones, statistics);
    mbarrier_wait(barriers_.dy_full(stage), parity);
    wgmma_fence();
    issue_scores<C>(dp, shared_ + C::v_offset + keys, dy_tile, delta_ones, statistics);
    wgmma_wait<1>();
    pin_registers(s);
    const int left[2] = {first_row_[0] - m * C::block_m, first_row_[1] - m * C::block_m};
    take_weights<C>(s, args_.scale_log2, shift_);
    if (masked) hide(s, left);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(s, k, p[k]);
    pin_registers(dv);
    wgmma_fence();
    issue_update<C>(dv, p, dy_tile);
    wgmma_wait<1>();
    pin_registers(dp);
    take_gradients(dp, s);
    if (masked) hide(dp, left);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(dp, k, ds[k]);
    pin_registers(dk);
    wgmma_fence();
    issue_update<C>(dk, ds, q_tile);
    store_ds(ds);
    hand_over_ds();
    const bool makes_dq = k_before_ >= 0 && makes_dq_of(n_ - 1);
    if (makes_dq) await_ds(n_ - 1);
    wgmma_wait<1>();
    pin_registers(dv);
    release(barriers_.dy_empty(stage));
    if (makes_dq) {
      make_dq(n_ - 1, [&] { release(barriers_.q_empty(stage)); });
    } else {
      wgmma_wait<0>();
      release(barriers_.q_empty(stage));
    }
    pin_registers(dk);
    look_back_at(tile0 + m);
  }

  // The n_-th query tile, no row of which sees a key of this warpgroup.
  __device__ __forceinline__ void pass_by(int tile) {
    uint32_t ds[steps][4];
#pragma unroll
    for (int k = 0; k < steps; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) ds[k][i] = 0;
    const int stage = stage_of<C::stages>(n_);
    mbarrier_wait(barriers_.q_full(stage), parity_of<C::stages>(n_));
    mbarrier_wait(barriers_.dy_full(stage), parity_of<C::stages>(n_));
    release(barriers_.q_empty(stage));
    release(barriers_.dy_empty(stage));
    store_ds(ds);
    hand_over_ds();
    make_dq_before();
    look_back_at(tile);
  }

  // dQ of the query tile before, where that is not made yet and is this warpgroup's.
  __device__ __forceinline__ void make_dq_before() {
    if (k_before_ < 0 || !makes_dq_of(n_ - 1)) return;
    await_ds(n_ - 1);
    make_dq(n_ - 1, [] {});
  }
  // The same with no query tile to follow; then K is done with.
  __device__ __forceinline__ void make_last_dq() {
    make_dq_before();
    if (k_before_ >= 0) release(barriers_.k_empty(k_before_));
    k_before_ = -1;
  }
  // The query tile becomes the one before, and if it is the first of its key tile the K before is
  // done with.
  __device__ __forceinline__ void look_back_at(int tile) {
    if (k_before_ >= 0 && k_before_ != k_stage_) release(barriers_.k_empty(k_before_));
    k_before_ = k_stage_;
    tile_before_ = tile;
    ++n_;
  }

  // Blocks take turns, and in a block warpgroups; a stage of dS belongs to one of them.
  __device__ __forceinline__ bool is_ours(uint32_t n) const {
    return !C::pair || n % 2 == cluster_rank();
  }
  static __device__ __forceinline__ uint32_t turn_of(uint32_t n) { return C::pair ? n / 2 : n; }
  static __device__ __forceinline__ int owner_of(uint32_t n) { return turn_of(n) % C::consumers; }
  __device__ __forceinline__ bool makes_dq_of(uint32_t n) const {
    return is_ours(n) && owner_of(n) == group_;
  }
  static constexpr int own_ds_stages = C::pair ? 2 : C::ds_stages;

  __device__ __forceinline__ float unshift() const { return unshift_of<C>(shift_); }

  static __device__ __forceinline__ void take_gradients(float (&dp)[scores],
                                                        const float (&p)[scores]) {
#pragma unroll
    for (int i = 0; i < scores; ++i) dp[i] *= p[i];
  }
  // dS of the n_-th query tile and this warpgroup's keys, as soon as dQ of the tile that lay there
  // before has been made.
  __device__ __forceinline__ void store_ds(const uint32_t (&ds)[steps][4]) const {
    const uint32_t turn = turn_of(n_);
    uint32_t to = ds_store_;
    if (is_ours(n_)) {
      const int stage = stage_of<own_ds_stages>(turn);
      mbarrier_wait(barriers_.ds_empty(stage), parity_of<own_ds_stages>(turn) ^ 1);
      to += stage * C::ds_bytes;
    } else {
      mbarrier_wait(barriers_.out_empty(), turn & 1 ^ 1);
      to += C::out_offset - C::ds_offset;
    }
#pragma unroll
    for (int k = 0; k < steps; ++k) shared_store_matrices(to ^ 32 * k, ds[k]);
    shared_store_fence();
  }
  // Tells who makes dQ of it, or the warp that sends it.
  __device__ __forceinline__ void hand_over_ds() const {
    if (!is_ours(n_)) {
      __syncwarp();
      release(barriers_.out_full());
    } else if (owner_of(n_) != group_) {
      named_barrier_arrive(barriers_.ds_full(stage_of<own_ds_stages>(turn_of(n_))),
                           128 * C::consumers);
    }
  }
  __device__ __forceinline__ void await_ds(uint32_t n) const {
    const uint32_t turn = turn_of(n);
    named_barrier_sync(barriers_.ds_full(stage_of<own_ds_stages>(turn)), 128 * C::consumers);
    if constexpr (C::pair) mbarrier_wait(barriers_.theirs_full(turn % 2), turn / 2 & 1);
  }

  __device__ __forceinline__ uint32_t k_tile(int stage) const {
    return shared_ + C::k_offset + stage * C::kv_bytes;
  }

  // dQ of the n-th query tile, the one before, behind an update of dK that may be in flight.
  // after_dk: once it is not.
  template <typename AfterDk>
  __device__ __forceinline__ void make_dq(uint32_t n, AfterDk after_dk) {
    float dq[columns];
    const int stage = stage_of<own_ds_stages>(turn_of(n));
    const uint64_t a = wgmma_descriptor(shared_ + C::ds_offset + stage * C::ds_bytes, C::ds_bytes);
    const uint64_t b = wgmma_descriptor(k_tile(k_before_), C::kv_block_bytes);
    pin_registers(dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i)
      wgmma_mn_major<Element>(dq, a + (i * 2048 >> 4), b + (i * 2048 >> 4), i > 0);
    if constexpr (C::pair) {
      const uint64_t theirs = wgmma_descriptor(shared_ + C::theirs_offset, C::ds_bytes);
      const uint64_t their_k = wgmma_descriptor(k_tile(1), C::kv_block_bytes);
#pragma unroll
      for (int i = 0; i < C::block_n / 16; ++i)
        wgmma_mn_major<Element>(dq, theirs + (i * 2048 >> 4), their_k + (i * 2048 >> 4), 1);
    }
    wgmma_commit();
    wgmma_wait<1>();
    after_dk();
    wgmma_wait<0>();
    pin_registers(dq);
    release(barriers_.ds_empty(stage));
    if constexpr (C::pair) {
      if (threadIdx.x % 32 == 0)
        mbarrier_arrive_at(address_at(cluster_rank() ^ 1, barriers_.theirs_free()));
    }
    if constexpr (C::dq_stages > 0) {
      const int buffer = stage_of<C::dq_stages>(n);
      const uint32_t at =
          shared_ + C::dq_offset + buffer * 4 * C::dq_floats + threadIdx.x % 128 * 16;
      await_turn(n);
      each_four(dq, [&](int j, float4 x) { shared_store(at + j * 2048, x); });
      shared_store_fence();
      __syncwarp();
      release(barriers_.dq_full(buffer));
    } else {
      float4* const to =
          reinterpret_cast<float4*>(args_.dq + int64_t{tile_before_} * C::dq_floats) +
          threadIdx.x % 128;
      each_four(dq, [&](int j, float4 x) { add_in_memory(to + j * 128, x); });
    }
  }
  // The buffer that dQ of the n-th query tile goes to has been read: once the turn has come that
  // the copying warp gives for every tile but the first dq_stages.
  __device__ __forceinline__ void await_turn(uint32_t n) const {
    if (n < C::dq_stages) return;
    const uint32_t turns = (n - C::dq_stages) / C::consumers;  // of this warpgroup before
    mbarrier_wait(barriers_.dq_turn(group_), turns & 1);
  }
  template <typename F>
  __device__ __forceinline__ void each_four(const float (&d)[columns], F f) const {
    const float factor = unshift();
    const auto out = [&](float x) { return C::shifts ? x * factor : x; };
#pragma unroll
    for (int j = 0; j < columns / 4; ++j)
      f(j, make_float4(out(d[4 * j]), out(d[4 * j + 1]), out(d[4 * j + 2]), out(d[4 * j + 3])));
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
  uint32_t ds_store_;       // where this lane's row of a matrix of dS goes, in the first stage
  float shift_;             // a whole number
  int k_stage_;
  int first_row_[2];        // that see this thread's keys, less its first column
  int group_first_row_;     // that sees the warpgroup's first key
  uint32_t n_ = 0;          // query tiles so far
  int k_before_ = -1;       // stage of K of the query tile before, whose dQ is not made; or -1
  int tile_before_;         // of all heads
};

}  // namespace baracuda::sm90::backward
