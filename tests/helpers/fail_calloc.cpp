// To be preloaded: a calloc() that fails on request.
#include <atomic>
#include <cstddef>

extern "C" {

void* __libc_calloc(size_t count, size_t size);

static std::atomic<size_t> wanted{0};
static std::atomic<int> failed{0};

// The next calloc(1, bytes) of the process returns NULL.
void fail_calloc(size_t bytes) { wanted = bytes; }
int failed_callocs() { return failed; }

void* calloc(size_t count, size_t size) {
  size_t expected = size;
  if (count == 1 && size != 0 && wanted.compare_exchange_strong(expected, 0)) {
    ++failed;
    return nullptr;
  }
  return __libc_calloc(count, size);
}
}
