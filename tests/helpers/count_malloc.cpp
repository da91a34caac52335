// To be preloaded: counts each thread's calls of malloc, realloc and aligned_alloc.
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

namespace {

__thread int64_t allocations __attribute__((tls_model("initial-exec")));

template <typename F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int64_t count_malloc() { return allocations; }

void* malloc(size_t size) {
  static const auto real = next<void* (*)(size_t)>("malloc");
  ++allocations;
  return real(size);
}

void* realloc(void* pointer, size_t size) {
  static const auto real = next<void* (*)(void*, size_t)>("realloc");
  ++allocations;
  return real(pointer, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  static const auto real = next<void* (*)(size_t, size_t)>("aligned_alloc");
  ++allocations;
  return real(alignment, size);
}

}  // extern "C"
