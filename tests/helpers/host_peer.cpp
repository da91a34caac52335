// The device operations of the peer exchange (baracuda_peer_ops), on host memory. The calling
// thread waits for words. Once host_peer_push_to() has a simulator's sim_enqueue, simulated streams
// do.
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "baracuda/peer.h"
#include "baracuda/status.h"

namespace {

using Enqueue = void (*)(void* stream, const char* what, int32_t (*may_run)(void*),
                         void (*work)(void*), void (*destroy)(void*), void* data);

Enqueue enqueue = nullptr;
int dropped = -1;  // the wait for a word, counted from 0, that is left out
int waits = 0;
std::vector<void*> waited;
std::atomic<int> rowed{0};
int32_t fails = 0;  // of host_peer_fail
std::mutex mutex;
std::multiset<void*> opened;
std::map<void*, int64_t> mapped;  // words, and their bytes

struct Task {
  void* word;
  uint64_t mask;
  bool resets;
  void* signal;
};

Task& as_task(void* data) { return *static_cast<Task*>(data); }
bool is_set(const Task& task) {
  return (__atomic_load_n(static_cast<uint64_t*>(task.word), __ATOMIC_SEQ_CST) & task.mask) != 0;
}
void store(void* word, uint32_t value) {
  __atomic_store_n(static_cast<uint32_t*>(word), value, __ATOMIC_SEQ_CST);
}
void destroy(void* data) { delete static_cast<Task*>(data); }

int32_t export_memory(const void* data, int64_t, baracuda_peer_memory* memory) {
  if (fails == 1) return BARACUDA_UNSUPPORTED;
  std::memcpy(memory->handle, &data, sizeof(data));
  memory->offset = 0;
  return BARACUDA_OK;
}
int32_t open_memory(const baracuda_peer_memory* memory, void** base) {
  std::memcpy(base, memory->handle, sizeof(*base));
  const std::lock_guard<std::mutex> lock(mutex);
  opened.insert(*base);
  return BARACUDA_OK;
}
int32_t close_memory(void* base) {
  const std::lock_guard<std::mutex> lock(mutex);
  opened.erase(opened.find(base));
  return BARACUDA_OK;
}
int32_t reach(const void*) { return fails == 2 ? BARACUDA_UNSUPPORTED : BARACUDA_OK; }
int32_t map_words(void* words, int64_t bytes, void** device_words) {
  *device_words = words;
  const std::lock_guard<std::mutex> lock(mutex);
  mapped[words] = bytes;
  return fails == 3 ? BARACUDA_UNSUPPORTED : BARACUDA_OK;
}
int32_t unmap_words(void* words) {
  const std::lock_guard<std::mutex> lock(mutex);
  mapped.erase(words);
  return BARACUDA_OK;
}
// Whether a CPU has ended waits, by the abort value in the upper half of a word.
bool any_abort() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [words, bytes] : mapped) {
    for (int64_t at = 4096; at < bytes; at += 64) {
      if (static_cast<uint32_t*>(words)[at / 4 + 1] == uint32_t{1} << 31) return true;
    }
  }
  return false;
}

int32_t write_word(void* stream, void* word, uint32_t value) {
  if (enqueue == nullptr) {
    store(word, value);
    return BARACUDA_OK;
  }
  enqueue(stream, "write", nullptr,
          [](void* data) { store(as_task(data).word, static_cast<uint32_t>(as_task(data).mask)); },
          destroy, new Task{word, value, false, nullptr});
  return BARACUDA_OK;
}

int32_t write_words(void* stream, void* const* words, const uint32_t* values, int32_t count) {
  for (int32_t i = 0; i < count; ++i) write_word(stream, words[i], values[i]);
  return BARACUDA_OK;
}

int32_t copy_rows(void* into, const void* from, int64_t row_bytes, int64_t pitch, int32_t rows,
                  void*) {
  if (enqueue != nullptr || fails == 6) return BARACUDA_UNSUPPORTED;
  for (int32_t row = 0; row < rows; ++row) {
    std::memcpy(static_cast<char*>(into) + row * row_bytes,
                static_cast<const char*>(from) + row * pitch, static_cast<size_t>(row_bytes));
  }
  ++rowed;
  return BARACUDA_OK;
}

int32_t wait_on(void* stream, const char* what, void* word, uint64_t mask, bool resets,
                void* signal) {
  if (enqueue == nullptr) {
    const Task task{word, mask, resets, signal};
    while (!is_set(task)) std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (resets) store(word, 0);
    if (signal != nullptr) store(signal, 1);
    return BARACUDA_OK;
  }
  const bool left_out = waits++ == dropped;
  waited.push_back(word);
  int32_t (*may_run)(void*) = [](void* data) -> int32_t { return is_set(as_task(data)); };
  enqueue(stream, what, left_out ? nullptr : may_run,
          [](void* data) {
            const Task& task = as_task(data);
            if (task.resets) store(task.word, 0);
            if (task.signal != nullptr) store(task.signal, 1);
          },
          destroy, new Task{word, mask, resets, signal});
  return BARACUDA_OK;
}
int32_t wait_word(void* stream, void* word, uint64_t mask) {
  return wait_on(stream, "await", word, mask, false, nullptr);
}
int32_t gate(void* stream, void* word, uint64_t mask, void* signal) {
  return wait_on(stream, "gate", word, mask, true, signal);
}
int32_t gate_load() { return BARACUDA_OK; }
int32_t query(void*, int32_t* done) {
  *done = fails != 5 || any_abort() ? 1 : 0;
  return BARACUDA_OK;
}

const baracuda_peer_ops ops = {sizeof(baracuda_peer_ops), export_memory, open_memory, close_memory,
                               reach,                     map_words,     unmap_words, write_word,
                               write_words,               wait_word,     gate,        gate_load,
                               query,                     copy_rows};

}  // namespace

extern "C" {

const baracuda_peer_ops* host_peer_ops() {
  static const baracuda_peer_ops apart = [] {
    baracuda_peer_ops made = ops;
    made.reach = nullptr;
    return made;
  }();
  return fails == 4 ? &apart : &ops;
}
void host_peer_push_to(Enqueue simulator, int left_out) {
  enqueue = simulator;
  dropped = left_out;
  waits = 0;
  waited.clear();
}
int host_peer_waits() { return waits; }
// Which of a rank's words the n-th wait was for. The words of the ranks come after the first page.
int host_peer_waited(int n) {
  constexpr uintptr_t words_of_a_rank = 8;
  return static_cast<int>(reinterpret_cast<uintptr_t>(waited[static_cast<size_t>(n)]) % 4096 / 64 %
                          words_of_a_rank);
}
// What fails from now on. 1: memory cannot be exported, 2: memory cannot be reached, 3: words
// cannot be mapped, 4: ranks of one process are not linked, 5: no stream is done before a CPU has
// ended its waits, 6: rows are of two allocations; 0: nothing.
void host_peer_fail(int32_t what) { fails = what; }
// Copies of several rows so far.
int host_peer_rowed() { return rowed; }
int host_peer_opened() { return static_cast<int>(opened.size()); }

}  // extern "C"
