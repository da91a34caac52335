// Simulated streams for the ring's race tests: nothing runs until sim_run(), which then takes the
// streams' work in a random order that their events allow. An order that a missing event permits is
// an order that a GPU may choose.
#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "attention/forward/ring_step.h"
#include "baracuda/attention_ring.h"
#include "baracuda/status.h"

namespace {

struct Marker {
  bool reached = false;
};

struct Task {
  std::function<bool()> may_run;  // empty: at once
  std::function<void()> work;
};

struct Stream {
  std::string name;
  std::deque<Task> tasks;
};

struct Event {
  std::shared_ptr<Marker> last;
};

using Launch = int32_t (*)(int32_t, const baracuda_attention_step_params*, void*);

struct Fault {
  std::string call;
  int nth;
  int32_t status;
};

std::mutex mutex;
std::vector<std::unique_ptr<Stream>> streams;
std::vector<std::unique_ptr<Event>> events;
std::vector<Fault> faults;
std::string log_text;
Launch real_launch = nullptr;
baracuda_ring_grid launch_grid{};
int32_t launch_status = BARACUDA_OK;
int waits = 0;
int dropped_wait = -1, dropped_count = 0;
int32_t current_device = -1;
int alive = 0;

Stream& as_stream(void* stream) { return *static_cast<Stream*>(stream); }

void note(const std::string& what, void* stream) {
  log_text += what + " " + as_stream(stream).name + "\n";
}

int32_t enter(const char* call) {
  for (size_t i = 0; i < faults.size(); ++i) {
    if (faults[i].call != call || --faults[i].nth > 0) continue;
    const int32_t status = faults[i].status;
    faults.erase(faults.begin() + static_cast<std::ptrdiff_t>(i));
    return status;
  }
  return BARACUDA_OK;
}

int32_t set_device(int32_t device) {
  const std::lock_guard<std::mutex> lock(mutex);
  current_device = device;
  return enter("set_device");
}

int32_t synchronize(void*) { return BARACUDA_OK; }

int32_t get_device(int32_t* device) {
  const std::lock_guard<std::mutex> lock(mutex);
  *device = current_device;
  return BARACUDA_OK;
}

int32_t record(void* event, void* stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const int32_t status = enter("record")) return status;
  note("record", stream);
  auto marker = std::make_shared<Marker>();
  static_cast<Event*>(event)->last = marker;
  as_stream(stream).tasks.push_back({{}, [marker] { marker->reached = true; }});
  return BARACUDA_OK;
}

int32_t wait(void* stream, void* event) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const int32_t status = enter("wait")) return status;
  note("wait", stream);
  // As in CUDA, an event that was never recorded holds nobody up.
  const auto& marker = static_cast<Event*>(event)->last;
  const int number = waits++ - dropped_wait;
  if ((number >= 0 && number < dropped_count) || marker == nullptr) return BARACUDA_OK;
  as_stream(stream).tasks.push_back({[marker] { return marker->reached; }, [] {}});
  return BARACUDA_OK;
}

int32_t copy(void* dst, const void* src, int64_t bytes, void* stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const int32_t status = enter("copy")) return status;
  note("copy", stream);
  as_stream(stream).tasks.push_back(
      {{}, [=] { std::memmove(dst, src, static_cast<size_t>(bytes)); }});
  return BARACUDA_OK;
}

int32_t clear(void* dst, int64_t bytes, void* stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const int32_t status = enter("clear")) return status;
  note("clear", stream);
  as_stream(stream).tasks.push_back(
      {{}, [=] { std::memset(dst, 0, static_cast<size_t>(bytes)); }});
  return BARACUDA_OK;
}

int32_t pause(void* stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  note("pause", stream);
  return BARACUDA_OK;
}

int32_t pause_load() { return BARACUDA_OK; }

int32_t multiprocessors(int32_t* count) {
  *count = 132;
  return BARACUDA_OK;
}

// The forward pass on simulated streams: its own live steps, the attention step as a task.
const baracuda_attention_ring_problem& as_problem(const void* problem) {
  return *static_cast<const baracuda_attention_ring_problem*>(problem);
}

int32_t is_live(const void* problem, const baracuda_ring_step* at) {
  return baracuda::ForwardRingStep(as_problem(problem), *at).launches();
}

int32_t grid(const void*, const baracuda_ring_step*, baracuda_ring_grid* found) {
  *found = launch_grid;
  return BARACUDA_OK;
}

int32_t launch(const void* problem, const baracuda_ring_step* at) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const int32_t status = enter("launch")) return status;
  const baracuda_attention_step_params params =
      baracuda::ForwardRingStep(as_problem(problem), *at).params();
  std::string flags = params.flags & BARACUDA_STEP_FIRST ? "F" : "";
  if (params.flags & BARACUDA_STEP_LAST) flags += "L";
  note("launch[" + flags + "," + std::to_string(params.sm_margin) + "]", at->stream);
  const int32_t kernel = as_problem(problem).kernel;
  as_stream(at->stream).tasks.push_back(
      {{}, [=] {
         const int32_t status = real_launch(kernel, &params, nullptr);
         if (launch_status == BARACUDA_OK) launch_status = status;
       }});
  return BARACUDA_OK;
}

int32_t event_create(void** event) {
  const std::lock_guard<std::mutex> lock(mutex);
  *event = nullptr;
  if (const int32_t status = enter("event_create")) return status;
  events.push_back(std::make_unique<Event>());
  *event = events.back().get();
  ++alive;
  return BARACUDA_OK;
}

// Only order is simulated, not time.
int32_t elapsed(void*, void*, float* milliseconds) {
  *milliseconds = 0;
  return BARACUDA_OK;
}

int32_t destroy(void*) {
  const std::lock_guard<std::mutex> lock(mutex);
  --alive;
  return BARACUDA_OK;
}

int32_t stream_create(void** stream, int32_t high_priority) {
  const std::lock_guard<std::mutex> lock(mutex);
  *stream = nullptr;
  if (const int32_t status = enter("stream_create")) return status;
  streams.push_back(std::make_unique<Stream>());
  streams.back()->name = (high_priority ? "ring" : "user") + std::to_string(streams.size() - 1);
  *stream = streams.back().get();
  ++alive;
  return BARACUDA_OK;
}

const baracuda_stream_ops ops = {
    sizeof(baracuda_stream_ops),
    set_device,
    get_device,
    record,
    wait,
    copy,
    clear,
    event_create,
    destroy,
    stream_create,
    destroy,
    synchronize,
    event_create,
    elapsed,
    pause,
    pause_load,
    multiprocessors,
};

const baracuda_ring_program program = {
    sizeof(baracuda_ring_program), 1, 0, nullptr, is_live, grid, launch, nullptr};

}  // namespace

extern "C" {

const baracuda_stream_ops* sim_stream_ops() { return &ops; }
const baracuda_ring_program* sim_program() { return &program; }
void sim_set_grid(int64_t blocks, int64_t per_multiprocessor) {
  launch_grid = {blocks, per_multiprocessor};
}

// For programs and exchanges of tests: enqueues work on a stream. It runs once may_run(data) is not
// 0; without a may_run at once.
void sim_enqueue(void* stream, const char* what, int32_t (*may_run)(void*), void (*work)(void*),
                 void (*destroy_data)(void*), void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  note(what, stream);
  const std::shared_ptr<void> owned(data, destroy_data);
  Task task;
  if (may_run != nullptr) task.may_run = [=] { return may_run(owned.get()) != 0; };
  task.work = [=] { work(owned.get()); };
  as_stream(stream).tasks.push_back(std::move(task));
}

// Forgets everything. launch() will run `step`, the attention step. Of the waits from now on,
// `count` are left out, from number first_dropped_wait on (0 is the first).
void sim_reset(Launch step, int first_dropped_wait, int count) {
  const std::lock_guard<std::mutex> lock(mutex);
  streams.clear();
  events.clear();
  faults.clear();
  log_text.clear();
  real_launch = step;
  launch_grid = {};
  launch_status = BARACUDA_OK;
  waits = 0;
  dropped_wait = first_dropped_wait;
  dropped_count = count;
  current_device = -1;
  alive = 0;
}

void sim_fail(const char* call, int nth, int32_t status) {
  const std::lock_guard<std::mutex> lock(mutex);
  faults.push_back({call, nth, status});
}

int sim_waits() { return waits; }
int sim_alive() { return alive; }
int32_t sim_current_device() { return current_device; }
const char* sim_log() { return log_text.c_str(); }

// Runs everything that was enqueued. Streams get random weights, so that some lag far behind.
// Returns the number of tasks that could never run, or -1 if a kernel failed.
int sim_run(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> weights;
  for (size_t i = 0; i < streams.size(); ++i) {
    weights.push_back(std::exponential_distribution<double>()(random) + 1e-9);
    if (random() % 2) weights.back() *= 1e-4;
  }
  for (;;) {
    std::vector<double> runnable(streams.size(), 0.0);
    bool any = false;
    for (size_t i = 0; i < streams.size(); ++i) {
      const auto& tasks = streams[i]->tasks;
      if (tasks.empty()) continue;
      if (tasks.front().may_run && !tasks.front().may_run()) continue;
      runnable[i] = weights[i];
      any = true;
    }
    if (!any) break;
    auto& tasks = streams[std::discrete_distribution<size_t>(runnable.begin(), runnable.end())(random)]->tasks;
    const Task task = tasks.front();
    tasks.pop_front();
    task.work();
  }
  if (launch_status != BARACUDA_OK) return -1;
  size_t left = 0;
  for (const auto& stream : streams) left += stream->tasks.size();
  return static_cast<int>(left);
}

}  // extern "C"
