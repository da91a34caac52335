// Host side of the row kernels before and after the backward steps on tensor cores, and their
// scratch. All step kernels of a family with one element and head_dim share them.
#pragma once

#include <type_traits>

#include "attention/backward/family.h"
#include "attention/backward/finish.cuh"
#include "attention/backward/order.h"
#include "attention/backward/prepare.cuh"
#include "common/kernel_load.h"

namespace baracuda {

// The scratch holds the Statistics of every row, the sums of dQ, and the norms for the shift. Rows
// are padded to whole query tiles. If query tiles have words (see turn_words.h), a counter of key
// tiles follows, then the first words of all tiles, then their second words.
template <typename Element_, int HeadDim, typename Statistics, int Words = 0,
          typename Sums = OneSum>
struct RowKernels {
  using Element = Element_;
  static constexpr int tile_rows = 64;
  static constexpr int dq_floats = tile_rows * HeadDim;  // in a query tile
  static constexpr int statistics_bytes = tile_rows * Statistics::row_bytes;
  static constexpr bool shifts = std::is_same_v<Element, __half>;  // see shift.cuh

  struct Scratch {
    int64_t query_tiles;  // query tiles in a head
    int64_t tiles;
    int log2_sums;  // log2 of the number of sums of dQ, see order.h
    int log2_most;  // the same without a mask; the scratch has this size, under a mask too

    explicit Scratch(const StepParams& p)
        : query_tiles((p.query_len + tile_rows - 1) / tile_rows),
          tiles(p.batch * p.heads * query_tiles),
          log2_sums(choose_log2(
              p, borders_may_vary(p) ? Sums::log2_most_masked : Sums::log2_most)),
          log2_most(choose_log2(p, Sums::log2_most)) {}
    int64_t sums() const { return int64_t{1} << log2_sums; }
    int64_t bytes() const {
      const int64_t sums = int64_t{1} << log2_most;
      return tiles * (statistics_bytes + 4 * dq_floats * sums) + (shifts ? norms_bytes : 0) +
             (Words > 0 ? (4 * (Words * sums * tiles + 1) + 15) / 16 * 16 : 0);
    }
    int choose_log2(const StepParams& p, int most) const {
      if (most == 0 || tiles == 0) return 0;
      return choose_log2_sums(p.batch * p.kv_heads, p.heads / p.kv_heads, query_tiles, Sums::share,
                              most);
    }
    char* statistics(const StepParams& p) const { return static_cast<char*>(p.state); }
    float* dq(const StepParams& p) const {
      return reinterpret_cast<float*>(statistics(p) + tiles * statistics_bytes);
    }
    float* norms(const StepParams& p) const { return dq(p) + sums() * tiles * dq_floats; }
    uint32_t* turns(const StepParams& p) const {
      if (Words == 0 || tiles == 0) return nullptr;
      char* const end = reinterpret_cast<char*>(norms(p)) + (shifts ? norms_bytes : 0);
      return reinterpret_cast<uint32_t*>(end) + 1;
    }
  };

  static int32_t load() {
    static ReadyDevices ready[3];
    int32_t status = BARACUDA_OK;
    const auto load = [&](auto* kernel, ReadyDevices& devices) {
      if (status == BARACUDA_OK)
        status = ensure_loaded(reinterpret_cast<const void*>(kernel), 0, devices);
    };
    load(prepare_kernel<Element, HeadDim, tile_rows, Statistics>, ready[0]);
    load(finish_kernel<Element, HeadDim, tile_rows>, ready[1]);
    if constexpr (shifts) load(norm_kernel<Element, HeadDim>, ready[2]);
    return status;
  }

  // overlaps: the device code of these kernels waits for the previous kernels.
  static int32_t launch_prepare(const BackwardParams& params, bool overlaps, cudaStream_t stream) {
    const StepParams& p = params.step;
    const Scratch scratch(p);
    if (scratch.tiles == 0) return BARACUDA_OK;
    if constexpr (shifts) {
      const int32_t status = check_cuda(
          cudaMemsetAsync(scratch.norms(p), 0, norms_bytes, stream), "cudaMemsetAsync");
      if (status != BARACUDA_OK) return status;
    }
    PrepareArgs args{};
    args.y = p.y;
    args.dy = params.dy;
    args.lse = static_cast<const float*>(p.lse);
    args.dlse = static_cast<const float*>(params.dlse);
    args.statistics = scratch.statistics(p);
    args.dq = scratch.dq(p);
    args.turns = scratch.turns(p);
    args.turn_words = static_cast<int>(Words * scratch.sums());
    args.norms = scratch.norms(p);
    args.y_strides = p.y_strides;
    args.dy_strides = params.dy_strides;
    args.lse_strides = params.lse_strides;
    args.dlse_strides = params.dlse_strides;
    args.heads = static_cast<int>(p.heads);
    args.query_len = static_cast<int>(p.query_len);
    args.query_tiles = static_cast<int>(scratch.query_tiles);
    args.lse_factor = static_cast<float>(Statistics::lse_factor(p.scale));
    return launch_grid(prepare_kernel<Element, HeadDim, tile_rows, Statistics>,
                       dim3(static_cast<unsigned>(scratch.tiles)), prepare_threads, 0, stream,
                       overlaps, args);
  }

  // Before a float16 step: raises the norm of V to that of the step's V.
  static int32_t launch_norm(const BackwardParams& params, int processors, bool overlaps,
                             cudaStream_t stream) {
    const StepParams& p = params.step;
    constexpr int rows_at_once = norm_threads / row_lanes<HeadDim>;
    NormArgs args{};
    args.v = p.v;
    args.found = Scratch(p).norms(p);
    args.strides = p.v_strides;
    args.rows = p.batch * p.kv_heads * p.key_len;
    args.kv_heads = static_cast<int>(p.kv_heads);
    args.key_len = static_cast<int>(p.key_len);
    const int64_t needed = (args.rows + rows_at_once - 1) / rows_at_once;
    const int64_t places = int64_t{8} * processors;
    return launch_grid(norm_kernel<Element, HeadDim>,
                       dim3(static_cast<unsigned>(needed < places ? needed : places)),
                       norm_threads, 0, stream, overlaps, args);
  }

  static int32_t launch_finish(const BackwardParams& params, bool overlaps, cudaStream_t stream) {
    const StepParams& p = params.step;
    const Scratch scratch(p);
    if (scratch.tiles == 0) return BARACUDA_OK;
    FinishArgs args{};
    // A call of one step without keys needs no scratch.
    args.sums = p.key_len == 0 && is_single_step(p) ? nullptr : scratch.dq(p);
    args.turns = args.sums == nullptr ? nullptr : scratch.turns(p);
    args.count = static_cast<int>(scratch.sums());
    args.dq = params.dq;
    args.dq_strides = params.dq_strides;
    args.heads = static_cast<int>(p.heads);
    args.query_len = static_cast<int>(p.query_len);
    args.query_tiles = static_cast<int>(scratch.query_tiles);
    args.scale = static_cast<float>(p.scale);
    return launch_grid(finish_kernel<Element, HeadDim, tile_rows>,
                       dim3(static_cast<unsigned>(scratch.tiles)), finish_threads, 0, stream,
                       overlaps, args);
  }
};

}  // namespace baracuda
