// The choice of the host kernels' instruction set, made once.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "attention/forward/host/block.h"
#include "baracuda/host.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace host {
namespace {

constexpr const char* kIsaVariable = "BARACUDA_HOST_ISA";

#if defined(__x86_64__)
// Uses CPUID, since __builtin_cpu_supports needs a runtime that not every compiler links.
struct Cpu {
  bool avx2 = false;    // and FMA, F16C
  bool avx512 = false;  // F, BW, VL, DQ

  Cpu() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned needed = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed) return;
    unsigned saved = 0, high = 0;  // the registers that the operating system saves
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = (saved & 0x6) == 0x6 && (b & bit_AVX2) != 0;
    constexpr unsigned wide = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    avx512 = avx2 && (saved & 0xe6) == 0xe6 && (b & wide) == wide;
  }
};
#endif

Isa choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv(kIsaVariable);
  const auto at_most = [wish](const char* name) {
    return wish != nullptr && std::strcmp(wish, name) == 0;
  };
  const Cpu cpu;
  if (at_most("baseline")) return Isa::baseline;
  if (cpu.avx512 && !at_most("avx2")) return Isa::avx512;
  if (cpu.avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

}  // namespace

int32_t check_isa_variable(const char* call) {
  const char* wish = std::getenv(kIsaVariable);
  if (wish == nullptr || *wish == '\0') return BARACUDA_OK;
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    if (std::strcmp(wish, name) == 0) return BARACUDA_OK;
  }
  return fail(BARACUDA_INVALID_ARGUMENT, call, "%s: got %.40s, must be baseline, avx2 or avx512",
              kIsaVariable, wish);
}

Isa chosen_isa() {
  static const Isa isa = choose();
  return isa;
}

const IsaKernels& isa_kernels() {
#if defined(__x86_64__)
  switch (chosen_isa()) {
    case Isa::avx512: return kAvx512Kernels;
    case Isa::avx2: return kAvx2Kernels;
    case Isa::baseline: break;
  }
#endif
  return kBaselineKernels;
}

}  // namespace host
}  // namespace baracuda

extern "C" const char* baracuda_host_isa(void) { return baracuda::host::isa_kernels().name; }
