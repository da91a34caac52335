// The consumers of the sm90a backward kernel at head_dim 256: three warpgroups over the same 64
// keys, one for each gradient.
//
// S and dP are computed transposed, as at other head_dims. dS goes to the shared memory of both
// blocks of the pair; each computes its half of the columns of dQ.
#pragma once

#include "attention/backward/sm90/consumer.cuh"
#include "attention/backward/sm90/wide_barriers.cuh"
#include "common/tma.cuh"

namespace baracuda::sm90::backward {

namespace wide {

static __device__ __forceinline__ int thread_of_group() { return threadIdx.x % 128; }
static __device__ __forceinline__ void release(uint32_t barrier) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}
// Arrives at the barrier of both blocks.
static __device__ __forceinline__ void release_in_pair(uint32_t barrier) {
  const int lane = threadIdx.x % 32;
  if (lane < 2) mbarrier_arrive_at(address_at(lane, barrier));
}

template <typename C>
__device__ __forceinline__ float shift_from(const Args& args) {
  if constexpr (!C::shifts) return 0.0f;
  return args.query_tiles > 0 ? static_cast<float>(shift_of(args.norms)) : 0.0f;
}

}  // namespace wide

// Keys: the warpgroup that computes dP, dS and dK. Otherwise the one that computes S, P and dV.
template <typename C, bool Keys>
class KeyGradient {
  using Element = typename C::Element;
  static constexpr int scores = C::block_m / 2;    // accumulators of S or dP
  static constexpr int columns = C::head_dim / 2;  // of dK or dV
  static constexpr int steps = C::block_m / 16;

 public:
  __device__ __forceinline__ KeyGradient(const Args& args, uint32_t shared,
                                         const Barriers<C>& barriers)
      : args_(args), shared_(shared), barriers_(barriers), shift_(wide::shift_from<C>(args)) {}

  __device__ __forceinline__ void run() {
    uint32_t key_tiles = 0;
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      const int stage = stage_of<C::stages>(item);
      mbarrier_wait(barriers_.slot_full(stage), parity_of<C::stages>(item));
      const WorkTile<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) {
        if constexpr (!Keys) await_p_read();  // consumes the last arrivals at the barrier
        return;
      }
      float gradient[columns];
#pragma unroll
      for (int i = 0; i < columns; ++i) gradient[i] = 0.0f;
      read_first_rows();
      if (count > 0) {
        mbarrier_wait(Keys ? barriers_.v_full() : barriers_.k_full(), parity_of<1>(key_tiles));
        mainloop(gradient, slot, count);
        wide::release(Keys ? barriers_.v_empty() : barriers_.k_empty());
        ++key_tiles;
      }
      const GradientRows<typename C::Element, C::head_dim> rows(
          slot.batch(), slot.kv_head(), slot.key0() + threadIdx.x % 128 / 32 * 16, args_.key_len,
          args_.gradients_f32);
      __syncwarp();
      wide::release(barriers_.slot_empty(stage));
      const float factor = unshift_of<C>(shift_);
      if constexpr (Keys) {
        rows.store(args_.dk, args_.dk_strides, gradient, args_.scale * factor);
      } else {
        rows.store(args_.dv, args_.dv_strides, gradient, factor);
      }
    }
  }

 private:
  static __device__ __forceinline__ void release_rows(uint32_t barrier) {
    if constexpr (C::multicast) {
      wide::release_in_pair(barrier);
    } else {
      wide::release(barrier);
    }
  }

  __device__ __forceinline__ void read_first_rows() {
    const FirstRows<C> rows(shared_, 0);
    const int key = wide::thread_of_group() / 32 * 16 + threadIdx.x % 32 / 4;
    first_row_[0] = rows.get(key) - 2 * (threadIdx.x % 4);
    first_row_[1] = rows.get(key + 8) - 2 * (threadIdx.x % 4);
    block_first_row_ = uniform(rows.get(0));
    // Keeps the compiler from spilling the row and recomputing the difference for every query tile.
    if constexpr (C::ordered) asm volatile("" : "+r"(first_row_[0]), "+r"(first_row_[1]));
    __syncwarp();
    wide::release(barriers_.first_rows_empty());
  }

  __device__ __forceinline__ void mainloop(float (&gradient)[columns], const WorkTile<C>& slot,
                                           int count) {
    const QueryTiles queries{uniform(slot.begin()), uniform(slot.step())};
    const int first_unmasked_row = uniform(slot.first_unmasked_row());
    for_each_query_tile<C::ordered>(args_.group, count, [&](int, int i) {
      const int m = queries.at(i);
      if ((m + 1) * C::block_m <= block_first_row_) {
        skip_query_tile();
      } else {
        mainloop_step(gradient, m, m * C::block_m < first_unmasked_row);
      }
      ++n_;
    });
  }

  // Processes the n_-th query tile, the m-th of its head. masked: some rows do not see all keys.
  __device__ __forceinline__ void mainloop_step(float (&gradient)[columns], int m, bool masked) {
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
    // A fragment with ones in the columns that hold a row's lse, or its delta. Volatile, so that it
    // is recomputed: keeping it would take too many registers.
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
    if constexpr (Keys) {
      multiply_by_p(x);
    } else {
      compute_p<C>(x, args_.scale_log2, shift_);
    }
    if (masked) apply_mask(x, left);
    if constexpr (!Keys) send_p(x);
#pragma unroll
    for (int k = 0; k < steps; ++k) pack<Element>(x, k, a[k]);
    if constexpr (!Keys) mbarrier_wait(barriers_.dy_full(), parity_of<1>(n_));
    pin_registers(gradient);
    wgmma_fence();
    issue_update<C>(gradient, a, Keys ? q_tile : dy_tile);
    if constexpr (Keys) store_ds(a);
    wgmma_wait<0>();
    pin_registers(gradient);
    release_rows(Keys ? barriers_.q_empty(stage) : barriers_.dy_empty());
  }

  // Skips the n_-th query tile, whose rows see no key of this block.
  __device__ __forceinline__ void skip_query_tile() {
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
  }

  // P goes from a thread of one warpgroup to the same thread of the other.
  __device__ __forceinline__ uint32_t p_address() const {
    return shared_ + C::p_offset + wide::thread_of_group() * 16;
  }
  // Waits until the previous P has been read.
  __device__ __forceinline__ void await_p_read() {
    if (p_sent_) named_barrier_sync(Barriers<C>::p_empty, 256);
  }
  __device__ __forceinline__ void send_p(const float (&p)[scores]) {
    await_p_read();
#pragma unroll
    for (int j = 0; j < scores / 4; ++j)
      shared_store(p_address() + j * 2048,
                   make_float4(p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3]));
    named_barrier_arrive(Barriers<C>::p_full, 256);
    p_sent_ = true;
  }
  // Turns dP into dS.
  __device__ __forceinline__ void multiply_by_p(float (&dp)[scores]) const {
    named_barrier_sync(Barriers<C>::p_full, 256);
#pragma unroll
    for (int j = 0; j < scores / 4; ++j) {
      const float4 p = shared_load_four(p_address() + j * 2048);
      dp[4 * j] *= p.x;
      dp[4 * j + 1] *= p.y;
      dp[4 * j + 2] *= p.z;
      dp[4 * j + 3] *= p.w;
    }
    named_barrier_arrive(Barriers<C>::p_empty, 256);
  }

  // Stores dS of the n_-th query tile in both blocks, once both have consumed the previous dS. A
  // warp sends its 16 keys.
  __device__ __forceinline__ void store_ds(const uint32_t (&ds)[steps][4]) const {
    const int lane = threadIdx.x % 32;
    const uint32_t of_warp = wide::thread_of_group() / 32 * 2048;
    const uint32_t row = ((lane / 8 & 1) * 8 + lane % 8) * 128 + ((lane / 16 ^ lane % 8) << 4);
    const uint32_t mine = shared_ + C::ds_offset + of_warp;
    const uint32_t full = barriers_.ds_full();
    mbarrier_wait(barriers_.ds_empty(), parity_of<1>(n_) ^ 1);
#pragma unroll
    for (int k = 0; k < steps; ++k) shared_store_matrices((mine + row) ^ 32 * k, ds[k]);
    shared_store_fence();
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive_expect(full, 2048);
      const int other = cluster_rank() ^ 1;
      copy_to_block(address_at(other, shared_ + C::remote_ds_offset + of_warp), mine, 2048,
                    address_at(other, full));
    }
    __syncwarp();
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const float shift_;         // of P, see shift.cuh; an integer
  int first_row_[2];     // the first rows that see this thread's keys, less its first column
  int block_first_row_;  // the first row that sees the block's first key
  uint32_t n_ = 0;            // query tiles so far
  bool p_sent_ = false;       // true once a P has been sent to the other warpgroup
};

// The warpgroup that computes dQ: this block's half of the columns, over the keys of both blocks.
template <typename C>
class QueryGradient {
  using Element = typename C::Element;
  static constexpr int columns = C::head_dim / 4;

 public:
  __device__ __forceinline__ QueryGradient(const Args& args, uint32_t shared,
                                           const Barriers<C>& barriers)
      : args_(args), shared_(shared), barriers_(barriers), shift_(wide::shift_from<C>(args)) {}

  __device__ __forceinline__ void run() {
    uint32_t n = 0, key_tiles = 0;
#pragma unroll 1
    for (uint32_t item = 0;; ++item) {
      const int stage = stage_of<C::stages>(item);
      mbarrier_wait(barriers_.slot_full(stage), parity_of<C::stages>(item));
      const WorkTile<C> slot(shared_, item);
      const int count = uniform(slot.count());
      if (count < 0) break;
      const QueryTiles queries{uniform(slot.begin()), uniform(slot.step())};
      const int head0 =
          uniform(slot.batch()) * args_.heads + uniform(slot.kv_head()) * args_.group;
      __syncwarp();
      wide::release(barriers_.slot_empty(stage));
      if (count == 0) continue;
      mbarrier_wait(barriers_.k_full(), parity_of<1>(key_tiles));
      for_each_query_tile<C::ordered>(args_.group, count, [&](int g, int i) {
        add_tile(n, (head0 + g) * args_.query_tiles + queries.at(i));
        ++n;
      });
      wide::release(barriers_.k_empty());
      ++key_tiles;
    }
    if (!C::ordered && leads()) tma_wait<0>();
  }

 private:
  static __device__ __forceinline__ bool leads() { return wide::thread_of_group() == 0; }

  // tile: the n-th query tile, counted over all heads. In ordered steps other warps add it:
  // wide_producer.cuh.
  __device__ __forceinline__ void add_tile(uint32_t n, int tile) const {
    float dq[columns];
    const int rank = cluster_rank();
    const uint64_t mine = wgmma_descriptor(shared_ + C::ds_offset, C::ds_bytes);
    const uint64_t remote_ds = wgmma_descriptor(shared_ + C::remote_ds_offset, C::ds_bytes);
    const uint64_t k =
        wgmma_descriptor(shared_ + C::k_offset + rank * C::half_bytes, C::kv_block_bytes);
    const uint64_t remote_k = wgmma_descriptor(shared_ + C::remote_k_offset, C::kv_block_bytes);
    mbarrier_wait(barriers_.ds_full(), parity_of<1>(n));
    pin_registers(dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i)
      wgmma_mn_major<Element>(dq, mine + (i * 2048 >> 4), k + (i * 2048 >> 4), i > 0);
#pragma unroll
    for (int i = 0; i < C::block_n / 16; ++i)
      wgmma_mn_major<Element>(dq, remote_ds + (i * 2048 >> 4), remote_k + (i * 2048 >> 4), 1);
    wgmma_commit();
    wgmma_wait<0>();
    pin_registers(dq);
    wide::release_in_pair(barriers_.ds_empty());
    const float factor = unshift_of<C>(shift_);
    float* const to = args_.dq + int64_t{tile} * C::dq_floats + rank * (C::dq_floats / 2);
    constexpr int fours = C::dq_piece_bytes / 2048;
#pragma unroll
    for (int i = 0; i < columns / 4 / fours; ++i) {
      const uint32_t at = shared_ + C::dq_offset + i % C::dq_pieces * C::dq_piece_bytes;
      if constexpr (C::ordered) {
        const uint32_t use = n * (C::pieces_of_half / C::dq_pieces) + i / C::dq_pieces;
        mbarrier_wait(barriers_.dq_read(i % C::dq_pieces), use & 1 ^ 1);
      } else {
        if (leads()) tma_wait_read<C::dq_pieces - 1>();
        named_barrier_sync(Barriers<C>::dq_free, 128);
      }
#pragma unroll
      for (int j = 0; j < fours; ++j) {
        const float* const x = dq + 4 * (i * fours + j);
        const auto out = [&](float value) { return C::shifts ? value * factor : value; };
        shared_store(at + j * 2048 + wide::thread_of_group() * 16,
                     make_float4(out(x[0]), out(x[1]), out(x[2]), out(x[3])));
      }
      shared_store_fence();
      if constexpr (C::ordered) {
        __syncwarp();
        wide::release(barriers_.dq_ready(n % 2, i % C::dq_pieces));
        continue;
      }
      named_barrier_sync(Barriers<C>::dq_full, 128);
      if (leads()) {
        tma_add_bytes(to + i * (C::dq_piece_bytes / 4), at, C::dq_piece_bytes);
        tma_commit();
      }
    }
  }

  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const float shift_;
};

template <typename E, bool M, bool O>
class Consumer<WideConfig<E, M, O>> {
  using C = WideConfig<E, M, O>;

 public:
  __device__ __forceinline__ Consumer(const Args& args, uint32_t shared,
                                      const Barriers<C>& barriers, int group)
      : args_(args), shared_(shared), barriers_(barriers), group_(group) {}

  __device__ __forceinline__ void run() const {
    if (group_ == 0) {
      increase_registers<C::gradient_registers>();
      KeyGradient<C, false>(args_, shared_, barriers_).run();
    } else if (group_ == 1) {
      increase_registers<C::gradient_registers>();
      KeyGradient<C, true>(args_, shared_, barriers_).run();
    } else {
      decrease_registers<C::dq_registers>();
      QueryGradient<C>(args_, shared_, barriers_).run();
    }
  }

 private:
  const Args& args_;
  const uint32_t shared_;
  const Barriers<C>& barriers_;
  const int group_;
};

}  // namespace baracuda::sm90::backward
