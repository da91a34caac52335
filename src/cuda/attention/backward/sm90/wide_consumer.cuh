// The computing side of the sm90a backward kernel at head_dim 256: two warpgroups over the same 64
// keys. One makes S, P and dV, the other dP, dS and dK: 64 keys by 256 columns of one gradient are
// all that a warpgroup's registers hold.
//
// S and dP are made transposed, as at other head_dims. dS goes to shared memory of both blocks of the
// pair, for dQ of their half of the columns, which is made a tile later.
#pragma once

#include "attention/backward/sm90/consumer.cuh"
#include "attention/backward/sm90/wide_barriers.cuh"

namespace baracuda::sm90::backward {

// Keys: the warpgroup of dP, dS and dK; else that of S, P and dV.
template <typename C, bool Keys>
class WideGroup {
  using Element = typename C::Element;
  static constexpr int scores = C::block_m / 2;        // accumulators of S or dP
  static constexpr int columns = C::head_dim / 2;      // of dK or dV
  static constexpr int dq_columns = C::head_dim / 4;   // of this block's half of dQ
  static constexpr int steps = C::block_m / 16;

 public:
  __device__ __forceinline__ WideGroup(const Args& args, uint32_t shared,
                                       const Barriers<C>& barriers)
      : args_(args), shared_(shared), barriers_(barriers) {
    if constexpr (C::shifts)
      shift_ = args.query_tiles > 0 ? static_cast<float>(shift_of(args.norms)) : 0.0f;
  }

  __device__ __forceinline__ void run() {
    uint32_t key_tiles = 0;
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      const int stage = stage_of<C::stages>(item);
      mbarrier_wait(barriers_.slot_full(stage), parity_of<C::stages>(item));
      const Slot<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) return;
      float gradient[columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) gradient[i] = 0.0f;
      read_first_rows();
      if (count > 0) {
        mbarrier_wait(barriers_.k_full(), parity_of<1>(key_tiles));
        if constexpr (Keys) mbarrier_wait(barriers_.v_full(), parity_of<1>(key_tiles));
        go_over_queries(gradient, slot, count);
        if constexpr (Keys) release(barriers_.v_empty());
      }
      const GradientRows<C> rows(args_, slot, 0);
      __syncwarp();
      release(barriers_.slot_empty(stage));
      if (count > 0) {
        make_dq_before();
        pending_ = false;
        release(barriers_.k_empty());
        ++key_tiles;
      }
      if constexpr (Keys) {
        rows.store(args_.dk, args_.dk_strides, gradient, args_.scale * unshift());
      } else {
        rows.store(args_.dv, args_.dv_strides, gradient, unshift());
      }
    }
  }

 private:
  static __device__ __forceinline__ int thread() { return threadIdx.x % 128; }
  static __device__ __forceinline__ void release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }
  // In both blocks.
  static __device__ __forceinline__ void release_in_pair(uint32_t barrier) {
    const int lane = threadIdx.x % 32;
    if (lane < 2) mbarrier_arrive_at(address_at(lane, barrier));
  }
  static __device__ __forceinline__ void release_rows(uint32_t barrier) {
    if constexpr (C::multicast) {
      release_in_pair(barrier);
    } else {
      release(barrier);
    }
  }

  __device__ __forceinline__ void read_first_rows() {
    const FirstRows<C> rows(shared_);
    const int key = thread() / 32 * 16 + threadIdx.x % 32 / 4;
    first_row_[0] = rows.get(key) - 2 * (threadIdx.x % 4);
    first_row_[1] = rows.get(key + 8) - 2 * (threadIdx.x % 4);
    block_first_row_ = uniform(rows.get(0));
    __syncwarp();
    release(barriers_.rows_taken());
  }

  __device__ __forceinline__ void go_over_queries(float (&gradient)[columns], const Slot<C>& slot,
                                                  int count) {
    const QueryTiles queries{uniform(slot.begin()), uniform(slot.step())};
    const int whole_from = uniform(slot.whole_from());
    const int head0 = uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
#pragma unroll 1
    for (int g = 0; g < args_.group; ++g) {
      const int tile0 = (head0 + g) * args_.query_tiles;
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        const int m = queries.at(i);
        if ((m + 1) * C::block_m <= block_first_row_) {
          pass_by();
        } else {
          fold(gradient, m, m * C::block_m < whole_from);
        }
        pending_ = true;
        tile_before_ = tile0 + m;
        ++n_;
      }
    }
  }

  // Takes in the n_-th query tile, m of its head. masked: there are rows that do not see all keys.
  __device__ __forceinline__ void fold(float (&gradient)[columns], int m, bool masked) {
    float x[scores];  // S, then P; or dP, then dS
    uint32_t a[steps][4];
    const int stage = stage_of<C::stages>(n_);
    const uint32_t q_tile = shared_ + C::q_offset + stage * C::tile_bytes;
    const uint32_t dy_tile = shared_ + C::dy_offset;
    const uint32_t statistics = shared_ + C::statistics_offset + stage * C::statistics_bytes;
    const int left[2] = {first_row_[0] - m * C::block_m, first_row_[1] - m * C::block_m};
    mbarrier_wait(barriers_.q_full(stage), parity_of<C::stages>(n_));
    if constexpr (Keys) mbarrier_wait(barriers_.dy_full(), parity_of<1>(n_));
    pin_registers(x);
    // A fragment of ones in the columns that hold a row's lse, or its delta. Volatile: kept from
    // tile to tile it is more than there is room for.
    uint32_t ones[4] = {0, 0, 0, 0};
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    const uint32_t parts = lane % 2 == 0 ? 0x3f803f80u : 0x3f80u;
    ones[0] = ones[1] = (lane % 4 >= 2) == Keys ? parts : 0;
    pin_registers(ones);
    wgmma_fence();
    issue_scores<C>(x, shared_ + (Keys ? C::v_offset : C::k_offset), Keys ? dy_tile : q_tile, ones,
                 statistics);
    wgmma_wait<0>();
    pin_registers(x);
    release_rows(Keys ? barriers_.dy_empty() : barriers_.q_empty(stage));
    const uint32_t p_at = shared_ + C::p_offset + thread() * 16;
    if constexpr (Keys) {
      mbarrier_wait(barriers_.p_full(), parity_of<1>(handed_over_));
#pragma unroll
      for (int j = 0; j < scores / 4; ++j) {
        const float4 p = shared_load_float4(p_at + j * 2048);
        x[4 * j] *= p.x;
        x[4 * j + 1] *= p.y;
        x[4 * j + 2] *= p.z;
        x[4 * j + 3] *= p.w;
      }
      __syncwarp();
      release(barriers_.p_empty());
      if (masked) hide(x, left);
    } else {
      take_weights<C>(x, args_.scale_log2, shift_);
      if (masked) hide(x, left);
      mbarrier_wait(barriers_.p_empty(), parity_of<1>(handed_over_) ^ 1);
#pragma unroll
      for (int j = 0; j < scores / 4; ++j)
        shared_store(p_at + j * 2048,
                     make_float4(x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]));
      __syncwarp();
      release(barriers_.p_full());
    }
    ++handed_over_;
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(x, k, a[k]);
    if constexpr (!Keys) mbarrier_wait(barriers_.dy_full(), parity_of<1>(n_));
    pin_registers(gradient);
    wgmma_fence();
    issue_update<C>(gradient, a, Keys ? q_tile : dy_tile);
    if constexpr (Keys) store_ds(a);
    const auto after_update = [&] {
      release_rows(Keys ? barriers_.q_empty(stage) : barriers_.dy_empty());
    };
    const bool makes_dq = pending_ && makes_dq_of(n_ - 1);
    if (makes_dq) {
      await_ds(n_ - 1);
      make_dq(n_ - 1, after_update);
    } else {
      wgmma_wait<0>();
      after_update();
    }
    pin_registers(gradient);
  }

  // The n_-th query tile, no row of which sees a key of this block.
  __device__ __forceinline__ void pass_by() {
    const int stage = stage_of<C::stages>(n_);
    mbarrier_wait(barriers_.q_full(stage), parity_of<C::stages>(n_));
    mbarrier_wait(barriers_.dy_full(), parity_of<1>(n_));
    release_rows(barriers_.q_empty(stage));
    release_rows(barriers_.dy_empty());
    if constexpr (Keys) {
      uint32_t ds[steps][4];
#pragma unroll
      for (int k = 0; k < steps; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) ds[k][i] = 0;
      store_ds(ds);
    }
    make_dq_before();
  }

  static __device__ __forceinline__ bool makes_dq_of(uint32_t n) {
    return (C::dq_owner == 2 ? n % 2 : C::dq_owner) == Keys;
  }
  __device__ __forceinline__ void await_ds(uint32_t n) const {
    mbarrier_wait(barriers_.ds_full(stage_of<C::ds_stages>(n)), parity_of<C::ds_stages>(n));
  }
  // dQ of the query tile before, where that is not made yet and is this warpgroup's.
  __device__ __forceinline__ void make_dq_before() {
    if (!pending_ || !makes_dq_of(n_ - 1)) return;
    await_ds(n_ - 1);
    make_dq(n_ - 1, [] {});
  }

  __device__ __forceinline__ float unshift() const { return unshift_of<C>(shift_); }

  // dS of the n_-th query tile, here and in the other block, as soon as both have made dQ of the
  // tile that lay there before. A warp sends its 16 keys.
  __device__ __forceinline__ void store_ds(const uint32_t (&ds)[steps][4]) const {
    const int stage = stage_of<C::ds_stages>(n_);
    const int lane = threadIdx.x % 32;
    const uint32_t of_warp = thread() / 32 * 2048 + stage * C::ds_bytes;
    const uint32_t row = ((lane / 8 & 1) * 8 + lane % 8) * 128 + ((lane / 16 ^ lane % 8) << 4);
    const uint32_t mine = shared_ + C::ds_offset + of_warp;
    const uint32_t full = barriers_.ds_full(stage);
    mbarrier_wait(barriers_.ds_empty(stage), parity_of<C::ds_stages>(n_) ^ 1);
#pragma unroll
    for (int k = 0; k < steps; ++k) shared_store_matrices(mine + row ^ 32 * k, ds[k]);
    shared_store_fence();
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive_expect(full, 2048);
      const int other = cluster_rank() ^ 1;
      copy_to_block(address_at(other, shared_ + C::theirs_offset + of_warp), mine, 2048,
                    address_at(other, full));
    }
    __syncwarp();
  }

  // This block's half of dQ of the n-th query tile, the one before, behind an update of the gradient
  // that may be in flight. after_update: once it is not.
  template <typename AfterUpdate>
  __device__ __forceinline__ void make_dq(uint32_t n, AfterUpdate after_update) {
    float dq[dq_columns];
    const int stage = stage_of<C::ds_stages>(n);
    const int rank = cluster_rank();
    const uint32_t ds = shared_ + stage * C::ds_bytes;
    const uint64_t mine = wgmma_descriptor(ds + C::ds_offset, C::ds_bytes);
    const uint64_t theirs = wgmma_descriptor(ds + C::theirs_offset, C::ds_bytes);
    const uint64_t k =
        wgmma_descriptor(shared_ + C::k_offset + rank * C::half_bytes, C::block_bytes);
    const uint64_t their_k = wgmma_descriptor(shared_ + C::their_k_offset, C::block_bytes);
    pin_registers(dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i)
      wgmma_mn_major<Element>(dq, mine + (i * 2048 >> 4), k + (i * 2048 >> 4), i > 0);
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i)
      wgmma_mn_major<Element>(dq, theirs + (i * 2048 >> 4), their_k + (i * 2048 >> 4), 1);
    wgmma_commit();
    wgmma_wait<1>();
    after_update();
    wgmma_wait<0>();
    pin_registers(dq);
    release_in_pair(barriers_.ds_empty(stage));
    const float factor = unshift();
    float4* const to = reinterpret_cast<float4*>(args_.dq + int64_t{tile_before_} * C::dq_floats) +
                       rank * (C::dq_floats / 8) + thread();
    const auto out = [&](float x) { return C::shifts ? x * factor : x; };
#pragma unroll
    for (int j = 0; j < dq_columns / 4; ++j)
      add_in_memory(to + j * 128, make_float4(out(dq[4 * j]), out(dq[4 * j + 1]),
                                              out(dq[4 * j + 2]), out(dq[4 * j + 3])));
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  float shift_;            // a whole number
  int first_row_[2];       // that see this thread's keys, less its first column
  int block_first_row_;    // that sees the block's first key
  uint32_t n_ = 0;         // query tiles so far
  uint32_t handed_over_ = 0;  // of P
  bool pending_ = false;   // dQ of the query tile before is not made
  int tile_before_;        // of all heads
};

template <typename E, bool M, int O>
class Consumer<WideConfig<E, M, O>> {
  using C = WideConfig<E, M, O>;

 public:
  __device__ __forceinline__ Consumer(const Args& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : args_(args), shared_(shared), barriers_(barriers), group_(group) {}

  __device__ __forceinline__ void run() {
    if (group_ == 0) {
      WideGroup<C, false>(args_, shared_, barriers_).run();
    } else {
      WideGroup<C, true>(args_, shared_, barriers_).run();
    }
  }

 private:
  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
};

}  // namespace baracuda::sm90::backward
