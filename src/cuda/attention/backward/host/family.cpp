// The host family's backward: splits a step into tiles and runs them on the thread pool.
//
// With enough K/V heads for the threads, there is one pass, with one work item for each head and
// five matrix products for a pair of tiles. With fewer heads, there are two passes, for the
// gradients of keys and of rows, with seven products in all. Both ways have the same sums in the
// same order, so the same bits.
#include "attention/backward/family.h"

#include <algorithm>

#include "attention/backward/host/gradients.h"
#include "attention/forward/family.h"
#include "attention/forward/host/thread_pool.h"
#include "attention/interval.h"
#include "common/error.h"

namespace baracuda {
namespace host {
namespace {

// Number of row tiles of a head that share a tile of keys in the pass over rows.
constexpr int64_t kRowTilesTogether = 4;
// Number of rows of a work item of the preparation.
constexpr int64_t kPreparedRows = 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void* at(const void* base, int64_t elements, int64_t element_bytes) {
  return const_cast<char*>(static_cast<const char*>(base)) + elements * element_bytes;
}

GradientShape shape_of(const BackwardParams& params) {
  const StepParams& p = params.step;
  // Q, dy, dq and the tile of keys take about 1 MB, the L2 cache of a core.
  const int64_t row_bytes = p.head_dim * accumulator_bytes(p.element);
  GradientShape shape;
  shape.head_dim = p.head_dim;
  shape.scale = p.scale;
  shape.tile_rows = row_bytes <= 4096 ? kMaxGradientRows : 32;
  shape.tile_keys = row_bytes <= 512 ? kMaxGradientKeys : row_bytes <= 1024 ? 64
                    : row_bytes <= 4096 ? 32 : 16;
  shape.wide_kv = params.kv_gradient_element != p.element;
  return shape;
}

// The tiles of keys that some row of a tile sees.
struct Tiles {
  int64_t begin;
  int64_t end;
  bool contains(int64_t tile) const { return begin <= tile && tile < end; }
};

class Gradients {
 public:
  // finishes: for finish_item(), after the last of several steps.
  Gradients(const BackwardParams& params, const baracuda_position_map& q_map,
            const baracuda_position_map& k_map, bool finishes)
      : params_(params),
        p_(params.step),
        pair_(mask_of(p_), q_map, p_.query_len, k_map, p_.key_len),
        shape_(shape_of(params)),
        call_(gradient_functions_of(p_.element)),
        element_bytes_(baracuda_element_bytes(p_.element)),
        sum_bytes_(accumulator_bytes(p_.element)),
        kv_bytes_(baracuda_element_bytes(params.kv_gradient_element)),
        group_(p_.heads / p_.kv_heads),
        key_tiles_(ceil_div(p_.key_len, shape_.tile_keys)),
        row_tiles_(ceil_div(p_.query_len, shape_.tile_rows)),
        finishes_(finishes) {
    delta_ = p_.state;
    lse_ = at(p_.state, total_rows(), sum_bytes_);
    dq_sums_ = at(p_.state, 2 * total_rows(), sum_bytes_);
  }

  // Chooses between one pass and two, and returns the number of work items.
  int64_t items(int64_t threads) {
    const int64_t heads = p_.batch * p_.kv_heads;
    one_pass_ = ceil_div(heads, threads) * threads * 5 <= heads * 7;
    if (one_pass_) return heads;
    row_groups_ = ceil_div(row_tiles_, kRowTilesTogether);
    return heads * key_tiles_ + p_.batch * p_.heads * row_groups_;
  }

  void run_item(int64_t item, void* scratch, const StopCheck& stop) const {
    const int64_t heads = p_.batch * p_.kv_heads;
    if (one_pass_) {
      run_head(item, scratch, stop);
    } else if (item < heads * key_tiles_) {
      // Early keys first: under a causal mask they are the long ones.
      run_keys(item % heads, item / heads, kWantDkv, scratch, stop);
    } else {
      item -= heads * key_tiles_;
      const int64_t all_heads = p_.batch * p_.heads;
      run_rows(item % all_heads, row_groups_ - 1 - item / all_heads, scratch, stop);
    }
  }

  void prepare_item(int64_t item, void* scratch) const {
    const int64_t blocks = ceil_div(p_.query_len, kPreparedRows);
    const int64_t head = item / blocks, first = item % blocks * kPreparedRows;
    const int64_t b = head / p_.heads, h = head % p_.heads;
    const auto from = [&](const void* base, const baracuda_strides& strides, int64_t bytes) {
      return at(base, b * strides.batch + h * strides.head + first * strides.seq, bytes);
    };
    RowStatistics rows;
    rows.count = std::min(kPreparedRows, p_.query_len - first);
    rows.y = from(p_.y, p_.y_strides, element_bytes_);
    rows.dy = from(params_.dy, params_.dy_strides, element_bytes_);
    rows.lse = from(p_.lse, params_.lse_strides, sum_bytes_);
    rows.dlse = params_.dlse == nullptr ? nullptr
                                        : from(params_.dlse, params_.dlse_strides, sum_bytes_);
    rows.y_stride = p_.y_strides.seq;
    rows.dy_stride = params_.dy_strides.seq;
    rows.lse_stride = params_.lse_strides.seq;
    rows.dlse_stride = params_.dlse_strides.seq;
    rows.delta = at(delta_, head * p_.query_len + first, sum_bytes_);
    rows.lse_out = at(lse_, head * p_.query_len + first, sum_bytes_);
    call_.prepare(shape_, rows, scratch);
  }
  int64_t prepare_items() const {
    return p_.batch * p_.heads * ceil_div(p_.query_len, kPreparedRows);
  }

  // Writes the rows of dq of one head, from the sums of all steps.
  void finish_item(int64_t head, void* scratch) const {
    for (int64_t rows = 0; rows < row_tiles_; ++rows)
      call_.skip(shape_, row_tile(head, rows, {0, 1}, 0, 0), scratch);
  }
  int64_t finish_items() const { return p_.batch * p_.heads; }

 private:
  int64_t total_rows() const { return p_.batch * p_.heads * p_.query_len; }

  // Computes all gradients of one K/V head: of its keys, and of the rows of its group.
  void run_head(int64_t kv_head, void* scratch, const StopCheck& stop) const {
    for (int64_t tile = 0; tile < key_tiles_; ++tile) {
      if (!run_keys(kv_head, tile, kWantDq | kWantDkv, scratch, stop)) return;
    }
    for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head)
      pass_unseeing_rows(head, 0, row_tiles_, scratch);
  }

  // Computes the gradients of one tile of keys, over all rows that see it. False: stopped.
  bool run_keys(int64_t kv_head, int64_t tile, int wanted, void* scratch,
                const StopCheck& stop) const {
    const KeyTile keys = key_tile(kv_head, tile);
    bool is_packed = false;
    call_.start(shape_, keys, scratch);
    for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head) {
      for (int64_t rows = 0; rows < row_tiles_; ++rows) {
        const Tiles met = met_by(rows);
        if (!met.contains(tile)) continue;
        if (stop.ask(stop.context)) return false;
        if (!is_packed) call_.pack(shape_, keys, scratch);
        is_packed = true;
        call_.accumulate(shape_, keys, row_tile(head, rows, met, tile, keys.count), wanted,
                         scratch);
      }
    }
    call_.finish(shape_, keys, scratch);
    return true;
  }

  // Computes the gradients of some row tiles of one head, over all keys that they see.
  void run_rows(int64_t head, int64_t group, void* scratch, const StopCheck& stop) const {
    const int64_t first = group * kRowTilesTogether;
    const int64_t end = std::min(first + kRowTilesTogether, row_tiles_);
    const int64_t kv_head = head / group_;  // heads are counted over all batches
    Tiles all = {key_tiles_, 0};
    for (int64_t rows = first; rows < end; ++rows) {
      const Tiles met = met_by(rows);
      if (met.begin < met.end) all = {std::min(all.begin, met.begin), std::max(all.end, met.end)};
    }
    for (int64_t tile = all.begin; tile < all.end; ++tile) {
      const KeyTile keys = key_tile(kv_head, tile);
      call_.pack(shape_, keys, scratch);
      for (int64_t rows = first; rows < end; ++rows) {
        const Tiles met = met_by(rows);
        if (!met.contains(tile)) continue;
        if (stop.ask(stop.context)) return;
        call_.accumulate(shape_, keys, row_tile(head, rows, met, tile, keys.count), kWantDq,
                         scratch);
      }
    }
    pass_unseeing_rows(head, first, end, scratch);
  }

  void pass_unseeing_rows(int64_t head, int64_t first, int64_t end, void* scratch) const {
    for (int64_t rows = first; rows < end; ++rows) {
      const Tiles met = met_by(rows);
      if (met.begin < met.end) continue;
      call_.skip(shape_, row_tile(head, rows, {0, 1}, 0, 0), scratch);
    }
  }

  Tiles met_by(int64_t row_tile) const {
    const int64_t first = row_tile * shape_.tile_rows;
    const Interval keys =
        pair_.keys_of_rows({first, std::min(first + shape_.tile_rows, p_.query_len)});
    if (keys.empty()) return {0, 0};
    return {keys.begin / shape_.tile_keys, ceil_div(keys.end, shape_.tile_keys)};
  }

  KeyTile key_tile(int64_t kv_head, int64_t tile) const {
    const int64_t b = kv_head / p_.kv_heads, h = kv_head % p_.kv_heads;
    const int64_t first = tile * shape_.tile_keys;
    const auto from = [&](const void* base, const baracuda_strides& strides, int64_t bytes) {
      return at(base, b * strides.batch + h * strides.head + first * strides.seq, bytes);
    };
    KeyTile keys;
    keys.count = std::min(shape_.tile_keys, p_.key_len - first);
    keys.k = from(p_.k, p_.k_strides, element_bytes_);
    keys.v = from(p_.v, p_.v_strides, element_bytes_);
    keys.dk = from(params_.dk, params_.dk_strides, kv_bytes_);
    keys.dv = from(params_.dv, params_.dv_strides, kv_bytes_);
    keys.k_stride = p_.k_strides.seq;
    keys.v_stride = p_.v_strides.seq;
    keys.dk_stride = params_.dk_strides.seq;
    keys.dv_stride = params_.dv_strides.seq;
    return keys;
  }

  // A tile of rows against one tile of keys, of those from met.begin to met.end.
  RowTile row_tile(int64_t head, int64_t row_tile, Tiles met, int64_t key_tile,
                   int64_t key_count) const {
    const int64_t b = head / p_.heads, h = head % p_.heads;
    const int64_t first = row_tile * shape_.tile_rows;
    const int64_t row = head * p_.query_len + first;
    const auto from = [&](const void* base, const baracuda_strides& strides) {
      return at(base, b * strides.batch + h * strides.head + first * strides.seq, element_bytes_);
    };
    RowTile rows;
    rows.count = std::min(shape_.tile_rows, p_.query_len - first);
    rows.q = from(p_.q, p_.q_strides);
    rows.dy = from(params_.dy, params_.dy_strides);
    rows.dq = from(params_.dq, params_.dq_strides);
    rows.q_stride = p_.q_strides.seq;
    rows.dy_stride = params_.dy_strides.seq;
    rows.dq_stride = params_.dq_strides.seq;
    rows.delta = at(delta_, row, sum_bytes_);
    rows.lse = at(lse_, row, sum_bytes_);
    rows.dq_sum = at(dq_sums_, row * p_.head_dim, sum_bytes_);
    rows.has_sum = key_tile > met.begin || (p_.flags & BARACUDA_STEP_FIRST) == 0;
    rows.is_last = key_tile == met.end - 1 && (finishes_ || is_single_step(p_));
    const int64_t first_key = key_tile * shape_.tile_keys;
    for (int64_t r = 0; r < rows.count; ++r) {
      const Interval keys = key_count > 0 ? pair_.keys_of_row(first + r) : Interval{0, 0};
      rows.end[r] = std::clamp<int64_t>(keys.end - first_key, 0, key_count);
      rows.begin[r] = std::clamp<int64_t>(keys.begin - first_key, 0, rows.end[r]);
    }
    return rows;
  }

  const BackwardParams& params_;
  const StepParams& p_;
  const ChunkPair pair_;
  const GradientShape shape_;
  const GradientFunctions& call_;
  const int64_t element_bytes_, sum_bytes_, kv_bytes_;
  const int64_t group_;
  const int64_t key_tiles_, row_tiles_;
  void* delta_;
  void* lse_;
  void* dq_sums_;
  bool one_pass_ = true;
  int64_t row_groups_ = 0;
  const bool finishes_;  // writes dq
};

int32_t out_of_memory(const char* call) {
  return fail(BARACUDA_OUT_OF_MEMORY, call, "no memory for %lld bytes of scratch",
              static_cast<long long>(kScratchBytes));
}

Gradients gradients_of(const BackwardParams& params, bool finishes = false) {
  const StepParams& p = params.step;
  // The host is this family's device.
  const bool given = p.device_maps != nullptr;
  return Gradients(params, given ? p.device_maps[0] : p.q_map, given ? p.device_maps[1] : p.k_map,
                   finishes);
}

int32_t prepare(const BackwardParams& params, void*) {
  constexpr const char* call = "baracuda_attention_backward_prepare";
  Gradients gradients = gradients_of(params);
  const auto task = [](void* context, int64_t item, void* scratch, const StopCheck& stop) {
    if (!stop.ask(stop.context)) static_cast<Gradients*>(context)->prepare_item(item, scratch);
  };
  const int32_t status = parallel_for(gradients.prepare_items(), task, &gradients, call);
  return status == BARACUDA_OUT_OF_MEMORY ? out_of_memory(call) : status;
}

int32_t step(const BackwardParams& params, void*) {
  constexpr const char* call = "baracuda_attention_backward_step";
  Gradients gradients = gradients_of(params);
  const auto task = [](void* context, int64_t item, void* scratch, const StopCheck& stop) {
    static_cast<Gradients*>(context)->run_item(item, scratch, stop);
  };
  const int32_t status =
      parallel_for(gradients.items(thread_count()), task, &gradients, call);
  return status == BARACUDA_OUT_OF_MEMORY ? out_of_memory(call) : status;
}

int32_t finish(const BackwardParams& params, void*) {
  if (is_single_step(params.step)) return BARACUDA_OK;  // the step has written dq
  constexpr const char* call = "baracuda_attention_backward_step";
  Gradients gradients = gradients_of(params, true);
  const auto task = [](void* context, int64_t item, void* scratch, const StopCheck& stop) {
    if (!stop.ask(stop.context)) static_cast<const Gradients*>(context)->finish_item(item, scratch);
  };
  const int32_t status = parallel_for(gradients.finish_items(), task, &gradients, call);
  return status == BARACUDA_OUT_OF_MEMORY ? out_of_memory(call) : status;
}

int32_t load(const StepParams& problem) { return host_family().load(problem); }

// The scratch holds the row statistics and the sums of dq. Even a single step stores these sums
// between its tiles of keys.
int64_t scratch_bytes(const StepParams& problem) { return state_bytes(problem); }

}  // namespace
}  // namespace host

const BackwardFamily& host_backward_family() {
  static const BackwardFamily family = {host::load, host::scratch_bytes, host::prepare, host::step,
                                        nullptr,    host::finish};
  return family;
}

}  // namespace baracuda
