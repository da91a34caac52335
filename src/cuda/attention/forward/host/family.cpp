// The host family: splits a step into blocks of query rows and runs them on the thread pool.
#include "attention/forward/family.h"

#include <algorithm>

#include "attention/forward/host/block.h"
#include "attention/forward/host/thread_pool.h"
#include "attention/interval.h"
#include "baracuda/host.h"
#include "common/error.h"

namespace baracuda {
namespace host {
namespace {

constexpr const char* kStep = "baracuda_attention_step";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const void* at(const void* base, int64_t elements, int32_t element) {
  return static_cast<const char*>(base) + elements * baracuda_element_bytes(element);
}

// How a step is split into blocks. A row's result does not depend on its block, so the blocks may
// depend on the number of threads.
struct Blocking {
  int64_t heads;       // query heads of one block (they share a K/V head)
  int64_t rows;        // query rows of one head in one block
  int64_t row_blocks;  // blocks along the rows of a head
  int64_t head_blocks;  // blocks along the query heads of a K/V head
  int64_t items;
};

Blocking split(const StepParams& p, int64_t max_rows) {
  const int64_t group = p.heads / p.kv_heads;
  Blocking b;
  b.row_blocks = ceil_div(p.query_len, max_rows);
  // Even blocks, in whole vectors.
  b.rows = std::min(max_rows, ceil_div(ceil_div(p.query_len, b.row_blocks), 16) * 16);
  b.row_blocks = ceil_div(p.query_len, b.rows);
  b.rows = std::min(b.rows, p.query_len);
  // Short queries (decode): a block has several heads that share K and V.
  b.heads = b.row_blocks > 1 ? 1 : std::min(group, std::max<int64_t>(1, max_rows / p.query_len));
  b.head_blocks = ceil_div(group, b.heads);
  b.items = p.batch * p.kv_heads * b.head_blocks * b.row_blocks;
  return b;
}

Blocking choose_blocking(const StepParams& p, int64_t threads) {
  // Queries and outputs of a block stay in the L2 cache.
  int64_t rows = kMaxBlockRows;
  while (rows > 16 && rows * p.head_dim * accumulator_bytes(p.element) > (int64_t(1) << 19)) rows /= 2;
  Blocking b = split(p, rows);
  while (b.items < 4 * threads && rows > 32) {
    rows /= 2;
    b = split(p, rows);
  }
  return b;
}

struct Step {
  const StepParams& params;
  ChunkPair pair;
  BlockFunction run;
  Blocking blocking;
};

void run_item(void* context, int64_t item, void* scratch, const StopCheck& stop) {
  const Step& step = *static_cast<const Step*>(context);
  const StepParams& p = step.params;
  const Blocking& blocking = step.blocking;
  // Late rows first: under a causal mask they are the long ones.
  const int64_t row_block = blocking.row_blocks - 1 - item % blocking.row_blocks;
  item /= blocking.row_blocks;
  const int64_t head_block = item % blocking.head_blocks;
  item /= blocking.head_blocks;
  const int64_t kv_head = item % p.kv_heads;
  const int64_t batch = item / p.kv_heads;

  BlockProblem problem;
  problem.k = at(p.k, batch * p.k_strides.batch + kv_head * p.k_strides.head, p.element);
  problem.v = at(p.v, batch * p.v_strides.batch + kv_head * p.v_strides.head, p.element);
  problem.k_stride = p.k_strides.seq;
  problem.v_stride = p.v_strides.seq;
  problem.head_dim = p.head_dim;
  problem.scale = p.scale;
  problem.element = p.element;
  problem.lse_element = p.lse_element;
  problem.first = (p.flags & BARACUDA_STEP_FIRST) != 0;
  problem.last = (p.flags & BARACUDA_STEP_LAST) != 0;
  problem.state = p.state;
  problem.lse = problem.last ? p.lse : nullptr;
  problem.total_rows = p.batch * p.heads * p.query_len;
  problem.stop = stop;

  BlockRows rows;
  rows.count = 0;
  const int64_t group = p.heads / p.kv_heads;
  const int64_t first_row = row_block * blocking.rows;
  const int64_t end_row = std::min(first_row + blocking.rows, p.query_len);
  const int64_t first_head = head_block * blocking.heads;
  const int64_t end_head = std::min(first_head + blocking.heads, group);
  for (int64_t h = kv_head * group + first_head; h < kv_head * group + end_head; ++h) {
    for (int64_t i = first_row; i < end_row; ++i) {
      const int64_t r = rows.count++;
      const baracuda_strides& qs = p.q_strides;
      const baracuda_strides& ys = p.y_strides;
      rows.q[r] = at(p.q, batch * qs.batch + h * qs.head + i * qs.seq, p.element);
      rows.y[r] = const_cast<void*>(
          at(p.y, batch * ys.batch + h * ys.head + i * ys.seq, p.element));
      rows.row[r] = (batch * p.heads + h) * p.query_len + i;
      const Interval keys = step.pair.keys_of_row(i);
      rows.begin[r] = keys.begin;
      rows.end[r] = keys.end;
    }
  }
  step.run(problem, rows, scratch);
}

int32_t load(const StepParams&) {
  constexpr const char* call = "baracuda_attention_load";
  int32_t status = check_threads_variable(call);
  if (status == BARACUDA_OK) status = check_isa_variable(call);
  if (status != BARACUDA_OK) return status;
  isa_kernels();
  if (start_threads()) return BARACUDA_OK;
  return fail(BARACUDA_OUT_OF_MEMORY, call,
              "no memory for %lld bytes of scratch", static_cast<long long>(kScratchBytes));
}

int32_t step(const StepParams& p, void*) {
  // The host is this family's device.
  const bool given = p.device_maps != nullptr;
  const baracuda_position_map& q_map = given ? p.device_maps[0] : p.q_map;
  const baracuda_position_map& k_map = given ? p.device_maps[1] : p.k_map;
  Step step = {p, ChunkPair(mask_of(p), q_map, p.query_len, k_map, p.key_len),
               isa_kernels().run[p.element], choose_blocking(p, thread_count())};
  const int32_t status = parallel_for(step.blocking.items, run_item, &step, kStep);
  if (status != BARACUDA_OUT_OF_MEMORY) return status;
  return fail(BARACUDA_OUT_OF_MEMORY, kStep, "no memory for %lld bytes of scratch",
              static_cast<long long>(kScratchBytes));
}

int32_t grid(const StepParams&, StepGrid*) { return BARACUDA_OK; }

}  // namespace
}  // namespace host

const AttentionFamily& host_family() {
  static const AttentionFamily family = {host::load, host::step, host::grid};
  return family;
}

}  // namespace baracuda

extern "C" int32_t baracuda_host_threads(void) { return baracuda::host::thread_count(); }

extern "C" int32_t baracuda_set_host_threads(int32_t threads) {
  if (threads < 1) {
    return baracuda::fail(BARACUDA_INVALID_ARGUMENT, "baracuda_set_host_threads",
                          "threads: got %d, must be at least 1", threads);
  }
  baracuda::host::set_thread_count(threads);
  return BARACUDA_OK;
}
