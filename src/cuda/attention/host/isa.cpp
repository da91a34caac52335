// Which instruction set the host kernels use, decided once.
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "attention/host/block.h"
#include "baracuda/attention.h"

namespace baracuda {
namespace host {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const IsaKernels& choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv("BARACUDA_HOST_ISA");
  const auto at_most = [wish](const char* name) {
    return wish != nullptr && std::strcmp(wish, name) == 0;
  };
  __builtin_cpu_init();
  if (at_most("baseline")) return kBaselineKernels;
  if (has_avx512() && !at_most("avx2")) return kAvx512Kernels;
  if (has_avx2()) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels& kernels = choose();
  return kernels;
}

}  // namespace host
}  // namespace baracuda

extern "C" const char* baracuda_host_isa(void) { return baracuda::host::isa_kernels().name; }
