// The calling thread's floating-point mode, for tests.
#include <stdint.h>

extern "C" void set_flush_to_zero(int32_t on) {
#if defined(__x86_64__)
  const unsigned mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(on ? mode | 0x8040 : mode & ~0x8040u);
#elif defined(__aarch64__)
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  mode = on ? mode | (uint64_t(1) << 24) : mode & ~(uint64_t(1) << 24);
  __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#endif
}

extern "C" int32_t flushes_to_zero(void) {
  volatile float tiny = 1e-38f;
  volatile float result = tiny * 0.01f;
  return result == 0 ? 1 : 0;
}
