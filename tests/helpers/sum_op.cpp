// An op for tests of the ring: chunks a and b of every rank travel BESIDE the steps, sums for every
// rank travel BEHIND them, in one part or two.
//
//   step of rank r on origin o   y(r) += a(o);   share(h) = w(r, h) * a(o) + h * b(o),   -2 * share
//   then y(r) = 2 * y(r) + 1, if the last step is live
//   sum of origin o, part h      share at home + (((share of o + 1) + share of o + 2) + …)
//
// On the host it computes at once. On simulated streams it enqueues, and reads its operands when
// the stream runs the work.
#include <cstdint>
#include <cstring>
#include <vector>

#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace {

constexpr int kBeside = 0;       // the payload of a and b
constexpr int kFirstBehind = 1;  // those of the parts' sums, each of two pieces

using Enqueue = void (*)(void* stream, const char* what, int32_t (*may_run)(void*),
                         void (*work)(void*), void (*destroy)(void*), void* data);

struct Problem {
  int64_t count;            // elements of a, of b, and of each piece of a sum
  double* y;
  const uint8_t* live;      // [rank][origin]
  Enqueue enqueue;          // NULL: at once
  int64_t beside_alone;  // nothing travels behind
};

const Problem& as_problem(const void* problem) { return *static_cast<const Problem*>(problem); }

struct Work {
  int64_t count;
  double weight;
  int32_t part;
  bool is_home;
  bool adds;
  const double* a;
  const double* b;
  double* y;
  double* chunk[2];
  double* received[2];
};

void launch_now(void* data) {
  const Work& w = *static_cast<Work*>(data);
  for (int64_t i = 0; i < w.count; ++i) {
    const double share = w.weight * w.a[i] + w.part * w.b[i];
    const double shares[2] = {share, -2 * share};
    for (int p = 0; p < 2; ++p) {
      if (w.adds && w.received[p] != nullptr) {
        w.received[p][i] += shares[p];
      } else if (w.chunk[p] != nullptr) {
        w.chunk[p][i] = shares[p];
      }
    }
    if (w.part == 0) w.y[i] += w.a[i];
  }
}

void add_now(void* data) {
  const Work& w = *static_cast<Work*>(data);
  for (int p = 0; p < 2; ++p) {
    double* const sum = w.is_home ? w.chunk[p] : w.received[p];
    for (int64_t i = 0; i < w.count; ++i) sum[i] = w.received[p][i] + w.chunk[p][i];
  }
}

void destroy(void* data) { delete static_cast<Work*>(data); }

int32_t start(const Problem& problem, const baracuda_ring_step* at, const char* what, bool adds,
              void (*now)(void*)) {
  const int32_t behind = kFirstBehind + at->part;
  Work* work = new Work;
  work->count = problem.count;
  work->weight = 1 + 0.37 * at->rank + 0.11 * at->part;
  work->part = at->part;
  work->is_home = at->step == at->world_size;
  work->adds = adds;
  work->a = static_cast<const double*>(at->chunk[kBeside][0]);
  work->b = static_cast<const double*>(at->chunk[kBeside][1]);
  work->y = problem.y;
  for (int p = 0; p < 2; ++p) {
    const bool travels = problem.beside_alone == 0;
    work->chunk[p] = travels ? static_cast<double*>(at->chunk[behind][p]) : nullptr;
    work->received[p] = travels ? static_cast<double*>(at->received[behind][p]) : nullptr;
  }
  if (problem.enqueue == nullptr) {
    now(work);
    delete work;
  } else {
    problem.enqueue(at->stream, what, nullptr, now, destroy, work);
  }
  return BARACUDA_OK;
}

int32_t is_live(const void* problem, const baracuda_ring_step* at) {
  return as_problem(problem).live[at->rank * at->world_size + at->hops[at->step].origin];
}
int32_t launch(const void* problem, const baracuda_ring_step* at) {
  return start(as_problem(problem), at, "launch", false, launch_now);
}
int32_t launch_and_add(const void* problem, const baracuda_ring_step* at) {
  return start(as_problem(problem), at, "launch", true, launch_now);
}
int32_t add(const void* problem, const baracuda_ring_step* at) {
  return start(as_problem(problem), at, "add", false, add_now);
}

void settle_now(void* data) {
  const Work& w = *static_cast<Work*>(data);
  for (int64_t i = 0; i < w.count; ++i) w.y[i] = 2 * w.y[i] + 1;
}
int32_t settle(const void* problem, const baracuda_ring_step* at) {
  return start(as_problem(problem), at, "settle", false, settle_now);
}

// [parts - 1][launch_adds]
const baracuda_ring_program programs[2][2] = {
    {{sizeof(baracuda_ring_program), 1, 0, nullptr, is_live, nullptr, launch, add, settle},
     {sizeof(baracuda_ring_program), 1, 1, nullptr, is_live, nullptr, launch_and_add, add,
      settle}},
    {{sizeof(baracuda_ring_program), 2, 0, nullptr, is_live, nullptr, launch, add, settle},
     {sizeof(baracuda_ring_program), 2, 1, nullptr, is_live, nullptr, launch_and_add, add,
      settle}}};

}  // namespace

extern "C" const baracuda_ring_program* sum_program(int32_t parts, int32_t launch_adds) {
  return &programs[parts - 1][launch_adds];
}
