// The host part of the library under a sanitizer, driven the way careless threads do: steps and whole
// rings side by side, while others resize the pool, abort rings and let deadlines pass. Prints "done".
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "baracuda/attention.h"
#include "baracuda/attention_backward.h"
#include "baracuda/host.h"
#include "baracuda/attention_ring.h"
#include "baracuda/exchange.h"
#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace {

constexpr int64_t kHeads = 2, kRows = 48, kDim = 16;
constexpr int64_t kElements = kHeads * kRows * kDim;

[[noreturn]] void give_up(const char* what, int32_t status) {
  std::fprintf(stderr, "%s: %d %s\n", what, status, baracuda_last_error()->message);
  std::exit(1);
}

baracuda_attention_step_params step_params() {
  baracuda_attention_step_params p{};
  p.struct_size = sizeof(p);
  p.element = p.lse_element = BARACUDA_F32;
  p.batch = 1;
  p.heads = p.kv_heads = kHeads;
  p.query_len = p.key_len = kRows;
  p.head_dim = kDim;
  p.scale = 0.25;
  p.q_strides = p.k_strides = p.v_strides = p.y_strides = {kElements, kRows * kDim, kDim};
  p.q_map = p.k_map = {0, 0, 1, kRows};
  return p;
}

void run_steps(int repeats) {
  std::vector<float> x(3 * kElements), y(kElements), lse(kHeads * kRows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) * 0.1f - 0.8f;
  std::vector<float> first;
  for (int n = 0; n < repeats; ++n) {
    baracuda_attention_step_params p = step_params();
    p.flags = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST | (n % 2 ? BARACUDA_STEP_CAUSAL : 0);
    p.q = x.data();
    p.k = x.data() + kElements;
    p.v = x.data() + 2 * kElements;
    p.y = y.data();
    p.lse = lse.data();
    const int32_t status = baracuda_attention_step(BARACUDA_ATTENTION_HOST, &p, nullptr);
    if (status != BARACUDA_OK) give_up("step", status);
    if (n == 1) first = y;
    if (n > 1 && n % 2 == 1 && y != first) give_up("the same step gave other bits", n);
  }
}

void run_gradients(int repeats) {
  std::vector<float> x(4 * kElements), y(kElements), lse(kHeads * kRows);
  std::vector<float> gradients(3 * kElements), first, scratch(kHeads * kRows * (kDim + 2));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) * 0.1f - 0.8f;
  baracuda_attention_backward_params p{};
  p.struct_size = sizeof(p);
  p.step = step_params();
  p.step.flags = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST | BARACUDA_STEP_CAUSAL;
  p.step.q = x.data();
  p.step.k = x.data() + kElements;
  p.step.v = x.data() + 2 * kElements;
  p.step.y = y.data();
  p.step.lse = lse.data();
  int32_t status = baracuda_attention_step(BARACUDA_ATTENTION_HOST, &p.step, nullptr);
  if (status != BARACUDA_OK) give_up("forward", status);
  p.step.state = scratch.data();
  p.dy = x.data() + 3 * kElements;
  p.dq = gradients.data();
  p.dk = gradients.data() + kElements;
  p.dv = gradients.data() + 2 * kElements;
  p.dy_strides = p.dq_strides = p.dk_strides = p.dv_strides = p.step.q_strides;
  p.lse_strides = {kHeads * kRows, kRows, 1};
  p.kv_gradient_element = BARACUDA_F32;
  for (int n = 0; n < repeats; ++n) {
    gradients.assign(gradients.size(), -1.0f);
    status = baracuda_attention_backward_prepare(BARACUDA_ATTENTION_HOST, &p, nullptr);
    if (status == BARACUDA_OK)
      status = baracuda_attention_backward_step(BARACUDA_ATTENTION_HOST, &p, nullptr);
    if (status != BARACUDA_OK) give_up("backward", status);
    if (n == 0) first = gradients;
    if (gradients != first) give_up("the same gradients have other bits", n);
  }
}

struct Rank {
  baracuda_ring_endpoint endpoint{};
  std::vector<baracuda_ring_hop> hops;
  std::vector<float> x, y, scratch[2], state;
  baracuda_attention_ring_problem problem{};
  baracuda_ring_payload payload{};
  baracuda_ring_call call{};

  Rank(baracuda_local_world* world, int32_t rank, int32_t size)
      : hops(static_cast<size_t>(size)), x(3 * kElements, 0.5f), y(kElements),
        state(kHeads * kRows * (kDim + 2)) {
    endpoint.struct_size = sizeof(endpoint);
    endpoint.device = -1;
    endpoint.ops = baracuda_host_stream_ops();
    int32_t status = baracuda_local_transport(world, rank, &endpoint);
    if (status == BARACUDA_OK) status = baracuda_ring_endpoint_open(&endpoint);
    if (status != BARACUDA_OK) give_up("endpoint", status);
    for (auto& buffer : scratch) buffer.resize(2 * kElements);
    baracuda_ring_schedule(rank, size, hops.data());
    problem.struct_size = sizeof(problem);
    problem.kernel = BARACUDA_ATTENTION_HOST;
    problem.step = step_params();
    problem.step.q = x.data();
    problem.step.k = x.data() + kElements;
    problem.step.v = x.data() + 2 * kElements;
    problem.step.y = y.data();
    problem.step.state = state.data();
    payload.timing = BARACUDA_RING_BESIDE;
    payload.pieces = 2;
    for (int i = 0; i < 2; ++i) {
      payload.piece_bytes[i] = kElements * static_cast<int64_t>(sizeof(float));
      payload.own[i] = x.data() + (i + 1) * kElements;
      payload.buffers[i] = scratch[1 - i].data();
    }
    call.struct_size = sizeof(call);
    call.endpoint = &endpoint;
    call.hops = hops.data();
    call.program = baracuda_attention_ring_program();
    call.problem = &problem;
    call.payloads = &payload;
    call.payload_count = 1;
  }
  ~Rank() { baracuda_ring_endpoint_close(&endpoint); }
};

enum class Fate { kGood, kAborted, kMissing };

void run_ring(int32_t size, Fate fate) {
  baracuda_local_world* world = nullptr;
  const double timeout = fate == Fate::kMissing ? 0.05 : 30;
  if (baracuda_local_world_create(size, timeout, &world) != BARACUDA_OK) give_up("world", 0);
  {
    std::vector<std::unique_ptr<Rank>> ranks;
    for (int32_t r = 0; r < size; ++r) ranks.push_back(std::make_unique<Rank>(world, r, size));
    std::vector<std::thread> threads;
    for (int32_t r = fate == Fate::kMissing ? 1 : 0; r < size; ++r) {
      threads.emplace_back([&ranks, r, fate] {
        for (int n = 0; n < 10; ++n) {
          const int32_t status = baracuda_ring_run(&ranks[static_cast<size_t>(r)]->call, 1);
          if (status == BARACUDA_OK) continue;
          if (fate == Fate::kGood) give_up("run", status);
          return;
        }
      });
    }
    if (fate == Fate::kAborted) baracuda_local_world_abort(world);
    for (std::thread& thread : threads) thread.join();
    for (int32_t r = 0; fate == Fate::kGood && r < size; ++r) {
      for (float value : ranks[static_cast<size_t>(r)]->y) {
        if (std::fabs(value - 0.5f) > 1e-5f) give_up("a wrong answer", r);
      }
    }
    // And all ranks by one thread.
    if (fate == Fate::kGood) {
      std::vector<baracuda_ring_call> calls;
      for (auto& rank : ranks) calls.push_back(rank->call);
      const int32_t status = baracuda_ring_run(calls.data(), size);
      if (status != BARACUDA_OK) give_up("run of all", status);
    }
  }
  if (baracuda_local_world_destroy(world) != BARACUDA_OK) give_up("destroy", 0);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 3;
  for (int round = 0; round < rounds; ++round) {
    std::atomic<bool> over{false};
    std::thread resizing([&over] {
      for (int32_t n = 1; !over.load(); ++n) {
        baracuda_set_host_threads(1 + n % 4);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) threads.emplace_back(run_steps, 20);
    for (int i = 0; i < 2; ++i) threads.emplace_back(run_gradients, 20);
    threads.emplace_back(run_ring, 3, Fate::kGood);
    threads.emplace_back(run_ring, 2, Fate::kGood);
    threads.emplace_back(run_ring, 3, Fate::kAborted);
    threads.emplace_back(run_ring, 3, Fate::kMissing);
    for (std::thread& thread : threads) thread.join();
    over = true;
    resizing.join();
  }
  std::puts("done");
  return 0;
}
