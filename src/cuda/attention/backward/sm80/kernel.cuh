// The sm80 backward step: dK and dV of a key tile, and its additions to dQ, by mma.sync on tiles
// that cp.async loads.
//
// A block iterates over the query tiles that see its keys, in all query heads of the group. If
// Paired (config.h), the warps form two groups. Each warp has a partner in the other group that
// works on the same keys: one of the two computes S, P and dV, the other dP, dS and dK. The
// partners share P through shared memory, in float32.
//
// S and dP are computed transposed, with a row for each key. So the accumulators of P and dS become
// the A operands of dV and dK without leaving their registers. dS also goes to shared memory, and
// the warps compute dQ from it in the next iteration. If Paired, one group computes dQ while the
// other computes its exponentials.
#pragma once

#include "attention/backward/gradient_rows.cuh"
#include "attention/backward/shift.cuh"
#include "attention/backward/sm80/args.cuh"
#include "attention/backward/sm80/config.h"
#include "attention/backward/sm80/turns.cuh"
#include "common/cp_async.cuh"
#include "common/dependent_launch.cuh"
#include "common/dtype.cuh"
#include "common/exponential.cuh"
#include "common/global_access.cuh"
#include "common/mbarrier.cuh"
#include "common/mma_sync.cuh"
#include "common/shared_access.cuh"
#include "common/uniform.cuh"

namespace baracuda::sm80::backward {

template <typename C>
class Block {
  using Element = typename C::Element;
  using Layout = typename C::Layout;
  using DsLayout = typename C::DsLayout;
  using QCopy = TileCopy<C::head_dim, C::block_m, C::threads>;
  using KvCopy = TileCopy<C::head_dim, C::block_n, C::threads>;
  static constexpr int query_blocks = C::score_m / 8;
  using Scores = float[C::key_blocks][query_blocks][4];
  static constexpr int gradients = C::paired ? 1 : 2;
  using Sums = float[C::key_blocks][C::head_dim / 8][4];          // dK or dV of the warp's keys
  using Fragments = uint32_t[C::score_m / 16][C::key_blocks][4];  // P or dS as A operands

 public:
  __device__ __forceinline__ Block(const Args& args, char* shared)
      : args_(args),
        shared_(shared_address(shared)),
        turns_(args, shared_),
        tile_(take_key_tile()),
        warp_(uniform(threadIdx.x / 32)),
        first_key_(warp_ % C::group_warps * C::warp_keys) {}

  __device__ __forceinline__ void run() {
    load_keys();
    const int first_row = shared_load(rows_address());
    Sums d[gradients];  // dK, then dV; if Paired, only the one that this warp computes
#pragma unroll
    for (int g = 0; g < gradients; ++g)
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
        for (int j = 0; j < C::head_dim / 8; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) d[g][i][j][c] = 0.0f;
    if (first_row < args_.query_len) {
      if constexpr (C::ordered) {
        mainloop_ordered(d, first_row / 64);
      } else {
        mainloop(d, first_row / C::block_m);
      }
    } else {
      cp_async_wait<0>();
    }
    if constexpr (C::paired) {
      makes_dv() ? store(d[0], args_.dv, args_.dv_strides, 1.0f)
                 : store(d[0], args_.dk, args_.dk_strides, args_.scale);
    } else {
      store(d[0], args_.dk, args_.dk_strides, args_.scale);
      store(d[1], args_.dv, args_.dv_strides, 1.0f);
    }
  }

 private:
  // Ordered steps get the key tile from a counter, other steps from the block's index.
  __device__ __forceinline__ KeyTile take_key_tile() const {
    if constexpr (C::ordered) turns_.draw();
    return key_tile();
  }
  __device__ __forceinline__ KeyTile key_tile() const {
    if constexpr (C::ordered) {
      return {turns_.batch(), turns_.kv_head(), turns_.key0()};
    } else {
      return key_tile_of(args_, C::block_n);
    }
  }
  // In ordered steps these functions compute their value at each use, since no register is free to
  // keep it.
  static __device__ __forceinline__ int thread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }
  static __device__ __forceinline__ int lane() {
    if constexpr (C::ordered) return thread() % 32;
    return threadIdx.x % 32;
  }
  template <typename Copy>
  static __device__ __forceinline__ int chunk() {
    if constexpr (C::ordered) return thread() % Layout::span;
    return Copy::chunk();
  }
  __device__ __forceinline__ int warp() const {
    if constexpr (C::ordered) return thread() / 32;
    return warp_;
  }
  __device__ __forceinline__ int first_key() const {
    if constexpr (C::ordered) return warp() % C::group_warps * C::warp_keys;
    return first_key_;
  }
  __device__ __forceinline__ int batch() const {
    if constexpr (C::ordered) return turns_.batch();
    return tile_.batch;
  }

  __device__ __forceinline__ bool makes_dv() const { return warp_ < C::group_warps; }
  __device__ __forceinline__ uint32_t rows_address() const { return shared_ + C::rows_offset; }

  // Loads K and V of the key tile, and computes the first row that sees each key.
  __device__ __forceinline__ void load_keys() const {
    const int valid = args_.key_len - tile_.key0;
    load<KvCopy>(shared_ + C::k_offset, args_.k, args_.k_strides, tile_.kv_head, tile_.key0, valid);
    load<KvCopy>(shared_ + C::v_offset, args_.v, args_.v_strides, tile_.kv_head, tile_.key0, valid);
    if (C::shifts && threadIdx.x == 0)
      shared_store(shared_ + C::shift_offset, args_.query_len > 0 ? shift_of(args_.norms) : 0);
    for (int i = threadIdx.x; i < C::block_n; i += C::threads)
      shared_store(rows_address() + 4 * i, first_row_of(args_, int64_t{tile_.key0} + i));
    cp_async_commit();
    __syncthreads();
  }
  template <typename Copy>
  __device__ __forceinline__ void load(uint32_t to, const void* from,
                                       const baracuda_strides& strides, int head, int row,
                                       int valid) const {
    const char* source = static_cast<const char*>(from) +
                         (batch() * strides.batch + head * strides.head +
                          int64_t{row + Copy::last_row()} * strides.seq + chunk<Copy>() * 8) * 2;
    Copy::copy(to, source, strides.seq * 2 * Copy::rows_per_pass, valid);
  }
  // Loads Q, dO, lse and delta of query tile m of a head.
  __device__ __forceinline__ void load_queries(int stage, int head, int m) const {
    const int row = m * C::block_m, valid = args_.query_len - row;
    load<QCopy>(shared_ + C::q_offset + stage * C::q_bytes, args_.q, args_.q_strides, head, row,
                valid);
    load<QCopy>(shared_ + C::dy_offset + stage * C::q_bytes, args_.dy, args_.dy_strides, head, row,
                valid);
    constexpr int pieces = C::block_m / 4;
    if (threadIdx.x < 2 * pieces) {
      const bool second = threadIdx.x >= pieces;
      const float* const from = second ? args_.delta : args_.lse;
      const int64_t index = int64_t{batch() * args_.heads + head} * args_.row_tiles * 64 + row;
      cp_async_or_zero<16>(
          shared_ + C::statistics_offset + stage * C::statistics_bytes + threadIdx.x * 16,
          from + index + threadIdx.x % pieces * 4, true);
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void mainloop(Sums (&d)[gradients], int begin) {
    const int end = (args_.query_len + C::block_m - 1) / C::block_m;
    int head = tile_.kv_head * args_.group, m = begin;
    const int last_head = head + args_.group;
    int before_head = 0, before_m = -1;
    load_queries(0, head, m);
#pragma unroll 1
    for (int stage = 0; head < last_head; stage ^= 1) {
      int next_head = head, next_m = m + 1;
      if (next_m == end) {
        next_m = begin;
        ++next_head;
      }
      // After this barrier, the tile has arrived, and all warps have finished the previous tile
      // except for its dQ.
      cp_async_wait<0>();
      __syncthreads();
      const bool more = next_head < last_head;
      if (C::stages > 1 && more) load_queries(stage ^ 1, next_head, next_m);
      // If Paired, one group computes dQ here, while the other computes its exponentials.
      if (!(C::paired && makes_dv()) && before_m >= 0) make_dq(before_head, before_m, stage ^ 1);
      mainloop_step(d, m, stage, head);
      if (C::stages == 1 && more) {
        __syncthreads();
        load_queries(0, next_head, next_m);
      }
      if (C::paired && makes_dv() && before_m >= 0) make_dq(before_head, before_m, stage ^ 1);
      before_head = head;
      before_m = m;
      head = next_head;
      m = next_m;
      if (!more) {
        __syncthreads();
        make_dq(before_head, before_m, stage);
      }
    }
  }

  // The mainloop of an ordered step. It takes a tile of 64 rows of every head of the group, then
  // the next tile of 64 rows; mainloop() takes all tiles of a head, then the next head. So two
  // blocks that start at different times stay equally far apart, even if one has fewer query tiles.
  __device__ __forceinline__ void mainloop_ordered(Sums (&d)[gradients], int begin) {
    Rows at{turns_.kv_head() * args_.group,
            (turns_.descends() ? args_.row_tiles - 1 : begin + turns_.first()) * C::tile_parts};
    int left = (args_.row_tiles - begin) * args_.group * C::tile_parts;
    load_queries(0, at.head, at.m);
#pragma unroll 1
    for (int stage = 0; left > 0; stage ^= 1) {
      --left;
      cp_async_wait<0>();
      turns_.await(stage ^ 1);
      __syncthreads();
      if (C::stages > 1 && left > 0) {
        const Rows next = rows_after(at);
        load_queries(stage ^ 1, next.head, next.m);
      }
      if (!(C::paired && makes_dv()) && turns_.rows(stage ^ 1) >= 0) make_dq(0, 0, stage ^ 1);
      mainloop_step(d, at.m, stage, at.head);
      at = rows_after(at);  // computed again, since no register is free to keep `next`
      if (C::stages == 1 && left > 0) {
        __syncthreads();
        load_queries(0, at.head, at.m);
      }
      if (C::paired && makes_dv() && turns_.rows(stage ^ 1) >= 0) make_dq(0, 0, stage ^ 1);
      if (left == 0) {
        turns_.await(stage);
        __syncthreads();
        turns_.pass(stage ^ 1);
        make_dq(0, 0, stage);
        __syncthreads();
        turns_.pass(stage);
      }
    }
  }
  struct Rows {
    int head, m;
  };
  __device__ __forceinline__ Rows rows_after(Rows at) const {
    if (++at.m % C::tile_parts != 0) return at;
    at.m -= C::tile_parts;
    if (++at.head == (turns_.kv_head() + 1) * args_.group) {
      at.head -= args_.group;
      at.m += turns_.descends() ? -C::tile_parts : C::tile_parts;
      if (at.m == args_.row_tiles * C::tile_parts) at.m = 0;  // first() may be above 0
    }
    return at;
  }
  // See Turns::take_and_pass().
  __device__ __forceinline__ void take_and_pass_turns(int stage, int head, int m) const {
    if constexpr (C::ordered) turns_.take_and_pass(stage, head, m);
  }

  // Processes query tile m of a head.
  __device__ __forceinline__ void mainloop_step(Sums (&d)[gradients], int m, int stage, int head) {
    const int q_stage = C::stages > 1 ? stage : 0;
    const uint32_t q_tile = shared_ + C::q_offset + q_stage * C::q_bytes;
    const uint32_t dy_tile = shared_ + C::dy_offset + q_stage * C::q_bytes;
    const uint32_t statistics = shared_ + C::statistics_offset + q_stage * C::statistics_bytes;
    // The first row that sees the last key of the tile, and every later row, sees all its keys.
    const bool masked = m * C::block_m < shared_load(rows_address() + 4 * (C::block_n - 1));
    if constexpr (C::paired) {
      Scores s;
      compute_scores(s, shared_ + (makes_dv() ? C::k_offset : C::v_offset),
                     makes_dv() ? q_tile : dy_tile);
      if (makes_dv()) {
        compute_p(s, statistics);
        if (masked) apply_mask(s, m * C::block_m);
        send_p(s);
      } else {
        receive_p(s, statistics);
        if (masked) apply_mask(s, m * C::block_m);
      }
      Fragments a;
      pack(s, a);
      if (!makes_dv()) store_ds(a, stage, 0);
      take_and_pass_turns(stage, head, m);
      update(d[0], a, makes_dv() ? dy_tile : q_tile);
    } else {
      take_and_pass_turns(stage, head, m);
#pragma unroll
      for (int part = 0; part < C::block_m / C::score_m; ++part) {
        const int row = part * C::score_m;
        const uint32_t queries = q_tile + row * Layout::bytes, dy = dy_tile + row * Layout::bytes;
        Scores s, dp;
        Fragments a;
        compute_scores(s, shared_ + C::k_offset, queries);
        compute_scores(dp, shared_ + C::v_offset, dy);
        compute_p(s, statistics + 4 * row);
        if (masked) apply_mask(s, m * C::block_m + row);
        pack(s, a);
        update(d[1], a, dy);
        compute_ds(dp, s, statistics + 4 * row);
        if (masked) apply_mask(dp, m * C::block_m + row);
        pack(dp, a);
        store_ds(a, stage, row / 8);
        update(d[0], a, queries);
      }
    }
  }

  // Computes S (from K and Q) or dP (from V and dO) of the warp's keys and score_m queries.
  __device__ __forceinline__ void compute_scores(Scores& s, uint32_t key_tile,
                                                 uint32_t query_tile) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
      for (int j = 0; j < query_blocks; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) s[i][j][c] = 0.0f;
    const uint32_t a_address = key_tile + Layout::offset(first_key() + lane % 16, lane / 16);
    const uint32_t b_address =
        query_tile + Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < C::head_dim / 16; ++k) {
      uint32_t a[C::key_blocks][4];
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
        ldmatrix_x4(a[i], Layout::advance(a_address, 2 * k) + i * 16 * Layout::bytes);
#pragma unroll
      for (int j = 0; j < query_blocks / 2; ++j) {
        uint32_t b[4];
        ldmatrix_x4(b, Layout::advance(b_address, 2 * k) + j * 16 * Layout::bytes);
#pragma unroll
        for (int i = 0; i < C::key_blocks; ++i) {
          mma_16816<Element>(s[i][2 * j], a[i], b[0], b[1]);
          mma_16816<Element>(s[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Computes P * 2^shift from S (shift.cuh).
  __device__ __forceinline__ void compute_p(Scores& s, uint32_t statistics) const {
    const int lane = threadIdx.x % 32;
    const float shifted = shift();
#pragma unroll
    for (int j = 0; j < query_blocks; ++j) {
      float2 offset = shared_load_pair(statistics + 4 * (8 * j + 2 * (lane % 4)));
      offset.x = C::shifts ? shifted - offset.x : -offset.x;
      offset.y = C::shifts ? shifted - offset.y : -offset.y;
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          s[i][j][c] =
              exp2_approx(fmaf(s[i][j][c], args_.scale_log2, c % 2 == 0 ? offset.x : offset.y));
    }
  }
  // Passes P to the partner warp, which has the same keys.
  __device__ __forceinline__ void send_p(const Scores& s) const {
    const uint32_t to = weights_address();
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
      for (int j = 0; j < query_blocks; ++j)
        shared_store(to + (i * query_blocks + j) * 512,
                     make_float4(s[i][j][0], s[i][j][1], s[i][j][2], s[i][j][3]));
    named_barrier_arrive(weights_barrier(), 64);
  }
  // Computes dS from dP and P.
  __device__ __forceinline__ void compute_ds(Scores& dp, const Scores& p,
                                             uint32_t statistics) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < query_blocks; ++j) {
      const float2 delta =
          shared_load_pair(statistics + 4 * C::block_m + 4 * (8 * j + 2 * (lane % 4)));
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          dp[i][j][c] = p[i][j][c] * (dp[i][j][c] - (c % 2 == 0 ? delta.x : delta.y));
    }
  }
  // Computes dS from dP, and from P of the partner warp.
  __device__ __forceinline__ void receive_p(Scores& dp, uint32_t statistics) const {
    const int lane = threadIdx.x % 32;
    const uint32_t from = weights_address();
    named_barrier_sync(weights_barrier(), 64);
#pragma unroll
    for (int j = 0; j < query_blocks; ++j) {
      const float2 delta =
          shared_load_pair(statistics + 4 * C::block_m + 4 * (8 * j + 2 * (lane % 4)));
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i) {
        const float4 p = shared_load_four(from + (i * query_blocks + j) * 512);
        dp[i][j][0] = p.x * (dp[i][j][0] - delta.x);
        dp[i][j][1] = p.y * (dp[i][j][1] - delta.y);
        dp[i][j][2] = p.z * (dp[i][j][2] - delta.x);
        dp[i][j][3] = p.w * (dp[i][j][3] - delta.y);
      }
    }
  }
  __device__ __forceinline__ uint32_t weights_address() const {
    const int lane = threadIdx.x % 32;
    return shared_ + C::p_offset +
           (warp_ % C::group_warps * C::key_blocks * query_blocks * 32 + lane) * 16;
  }
  __device__ __forceinline__ int weights_barrier() const { return 1 + warp_ % C::group_warps; }

  // Zeroes the elements whose row does not see the key. It selects instead of multiplying by zero,
  // because dP or delta may be NaN there.
  __device__ __forceinline__ void apply_mask(Scores& x, int row0) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2 * C::key_blocks; ++r) {
      const int first_row = shared_load(rows_address() + 4 * (first_key() + 8 * r + lane / 4));
      const int unseen = first_row - row0 - 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < query_blocks; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (8 * j + c < unseen) x[r / 2][j][r % 2 * 2 + c] = 0.0f;
    }
  }

  static __device__ __forceinline__ void pack(const Scores& x, Fragments& a) {
#pragma unroll
    for (int k = 0; k < C::score_m / 16; ++k)
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          a[k][i][r] = Dtype<Element>::pack(x[i][2 * k + r / 2][r % 2 * 2],
                                            x[i][2 * k + r / 2][r % 2 * 2 + 1]);
  }

  // Stores dS for make_dq(). first_chunk: the index, in the query tile, of the first eight queries
  // of `a`.
  __device__ __forceinline__ void store_ds(const Fragments& a, int stage, int first_chunk) const {
    const int lane = threadIdx.x % 32;
    const uint32_t tile = shared_ + C::ds_offset + stage * C::ds_bytes;
    const uint32_t to = tile + DsLayout::offset(first_key() + lane / 4, 0) + lane % 4 * 4;
#pragma unroll
    for (int k = 0; k < C::score_m / 16; ++k)
#pragma unroll
      for (int i = 0; i < C::key_blocks; ++i)
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const int chunk = first_chunk + 2 * k + x / 2;
          shared_store((to ^ chunk << 4) + (16 * i + x % 2 * 8) * DsLayout::bytes,
                       static_cast<int>(a[k][i][x]));
        }
  }

  // Adds the product of P and dO to dV, or the product of dS and Q to dK.
  __device__ __forceinline__ void update(Sums& d,
                                         const Fragments& a,
                                         uint32_t query_tile) const {
    const int lane = threadIdx.x % 32;
    const uint32_t address = query_tile + Layout::offset(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < C::score_m / 16; ++k)
#pragma unroll
      for (int j = 0; j < C::head_dim / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, Layout::advance(address, 2 * j) + k * 16 * Layout::bytes);
#pragma unroll
        for (int i = 0; i < C::key_blocks; ++i) {
          mma_16816<Element>(d[i][2 * j], a[k][i], b[0], b[1]);
          mma_16816<Element>(d[i][2 * j + 1], a[k][i], b[2], b[3]);
        }
      }
  }

  // Computes this warp's part of dQ of query tile m of a head, whose dS is complete. In ordered
  // steps head and m are 0, and the query tile is turns_.rows(stage).
  __device__ __forceinline__ void make_dq(int head, int m, int stage) const {
    const int lane = this->lane();
    const int column = warp() % C::dq_column_warps, row = warp() / C::dq_column_warps;
    if (C::dq_row_warps * C::dq_column_warps < C::warps && row >= C::dq_row_warps) return;
    float dq[C::dq_row_blocks][2 * C::dq_column_pairs][4];
#pragma unroll
    for (int i = 0; i < C::dq_row_blocks; ++i)
#pragma unroll
      for (int j = 0; j < 2 * C::dq_column_pairs; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) dq[i][j][c] = 0.0f;
    // In shared memory, dS has a row for each key. A needs a row for each query, so ldmatrix
    // transposes dS.
    const uint32_t ds_tile = shared_ + C::ds_offset + stage * C::ds_bytes;
    uint32_t a_address[C::dq_row_blocks];
#pragma unroll
    for (int i = 0; i < C::dq_row_blocks; ++i)
      a_address[i] = ds_tile + DsLayout::offset(lane / 16 * 8 + lane % 8,
                                                (row * C::dq_row_blocks + i) * 2 + lane / 8 % 2);
    const uint32_t b_address =
        shared_ + C::k_offset + Layout::offset(lane % 16, 2 * column + lane / 16);
#pragma unroll (C::dq_unroll)
    for (int k = 0; k < C::block_n / 16; ++k) {
      uint32_t a[C::dq_row_blocks][4];
#pragma unroll
      for (int i = 0; i < C::dq_row_blocks; ++i)
        ldmatrix_x4_trans(a[i], a_address[i] + k * 16 * DsLayout::bytes);
#pragma unroll
      for (int j = 0; j < C::dq_column_pairs; ++j) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, Layout::advance(b_address, 2 * C::dq_column_warps * j) +
                                 k * 16 * Layout::bytes);
#pragma unroll
        for (int i = 0; i < C::dq_row_blocks; ++i) {
          mma_16816<Element>(dq[i][2 * j], a[i], b[0], b[1]);
          mma_16816<Element>(dq[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
    add_dq(dq, head, m * (C::block_m / 16) + row * C::dq_row_blocks, column, stage);
  }
  // row_block: the index of the first block of 16 rows, counted in the head, or, in ordered steps,
  // in the query tile turns_.rows(stage).
  __device__ __forceinline__ void add_dq(
      const float (&dq)[C::dq_row_blocks][2 * C::dq_column_pairs][4], int head, int row_block,
      int column, int stage) const {
    int lane = threadIdx.x % 32;
    int64_t tile = int64_t{tile_.batch * args_.heads + head} * args_.row_tiles + row_block / 4;
    bool is_first = false;  // the sum is still unwritten, so store instead of adding
    if constexpr (C::ordered) {
      asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
      const int rows = turns_.rows(stage);
      tile = rows / C::tile_parts;
      row_block += rows % C::tile_parts * (C::block_m / 16);
      is_first = turns_.is_first(stage);
    }
    float4* const to = reinterpret_cast<float4*>(args_.dq + tile * (64 * C::head_dim)) +
                       row_block % 4 * 32 + lane;
    const float factor = unshift();
#pragma unroll
    for (int i = 0; i < C::dq_row_blocks; ++i)
#pragma unroll
      for (int j = 0; j < 2 * C::dq_column_pairs; ++j) {
        const float(&x)[4] = dq[i][j];
        const int column_block = 2 * (column + j / 2 * C::dq_column_warps) + j % 2;
        if (C::ordered && is_first) {
          to[column_block * 128 + i * 32] =
              make_float4(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor);
        } else {
          // The product is written twice: one variable for both branches made ptxas spill.
          add_in_memory(to + column_block * 128 + i * 32,
                        make_float4(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor));
        }
      }
  }

  // The shift (shift.cuh). It is kept in shared memory, since no register is free for it.
  __device__ __forceinline__ float shift() const {
    return C::shifts ? static_cast<float>(shared_load(shared_ + C::shift_offset)) : 0.0f;
  }
  // The factor that removes the shift.
  __device__ __forceinline__ float unshift() const {
    return C::shifts ? exp2_approx(-shift()) : 1.0f;
  }

  __device__ __forceinline__ void store(Sums& d, void* to, const baracuda_strides& strides,
                                        float factor) const {
    const KeyTile tile = key_tile();
#pragma unroll
    for (int i = 0; i < C::key_blocks; ++i) {
      const GradientRows<Element, C::head_dim> rows(tile.batch, tile.kv_head,
                                                    tile.key0 + first_key() + 16 * i,
                                                    args_.key_len, args_.gradients_f32);
      rows.store(to, strides, reinterpret_cast<float(&)[C::head_dim / 2]>(d[i]),
                 factor * unshift());
    }
  }

  const Args& args_;
  const uint32_t shared_;
  const Turns<C> turns_;
  const KeyTile tile_;
  const int warp_;
  const int first_key_;  // the index of the warp's first key in the tile
};

template <typename C>
__global__ void __launch_bounds__(C::threads, C::blocks_per_sm)
    step_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) char shared[];
  launch_dependent_grids();
  await_previous_grids();
  Block<C>(args, shared).run();
}

}  // namespace baracuda::sm80::backward
