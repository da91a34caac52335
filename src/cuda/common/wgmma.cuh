// Warpgroup matrix products (sm_90a): m64nNk16 with f32 accumulators, B from shared memory, A from
// shared memory or registers. They are asynchronous: the thread must not touch their registers
// until wgmma_wait() has waited for their group.
//
// Accumulators: warp w and lane t of the warpgroup hold, in d[4*j + 2*h + c], row 16*w + t/4 + 8*h
// and column 8*j + 2*(t%4) + c. That is also the layout of A: the fragment of columns 16*k to
// 16*k + 15 is {pack(d[8*k + 2*i], d[8*k + 2*i + 1]), i = 0..3}.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

namespace baracuda {

// Describes a tile of 16-bit elements in shared memory to wgmma. The tile is 1024-byte aligned, and
// has rows of 128 bytes whose 16-byte chunks are permuted (chunk ^= row % 8). A wider tile is
// several of these.
//
// K-major (Q, K): the reduction dimension is contiguous in a row. MN-major (V): it runs across the
// rows, and block_bytes is the distance from one block of 64 columns to the next.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t block_bytes) {
  constexpr uint64_t swizzle_128 = uint64_t{1} << 62;
  constexpr uint64_t eight_rows = uint64_t{1024 >> 4} << 32;
  return swizzle_128 | eight_rows | static_cast<uint64_t>(block_bytes >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// Describes a K-major tile of eight columns, with contiguous rows of 16 bytes. wgmma needs 16
// columns. It reads these eight twice, as columns 0 to 7 and as columns 8 to 15, because the
// descriptor's distance between the two halves is 0.
__device__ __forceinline__ uint64_t wgmma_descriptor_k8(uint32_t address) {
  constexpr uint64_t eight_rows = uint64_t{128 >> 4} << 32;
  return eight_rows | (address & 0x3ffff) >> 4;
}

// Call this before the first product, and again after code has touched registers of A or of the
// accumulators.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps the compiler from moving uses of these registers across a wait or the issue of a product.
template <typename T, int N>
__device__ __forceinline__ void pin_registers(T (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(d[i])::"memory");
    } else {
      asm volatile("" : "+r"(d[i])::"memory");
    }
  }
}

// Sets the number of registers of each thread of the warpgroup (setmaxnreg). All four warps must
// call this.
template <int Registers>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

template <int Registers>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

// Lists of 8, 16, … accumulator registers: their names in the instruction, and the asm operands.

#define BARACUDA_N0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BARACUDA_N8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define BARACUDA_N16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define BARACUDA_N24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define BARACUDA_N32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define BARACUDA_N40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define BARACUDA_N48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define BARACUDA_N56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define BARACUDA_N64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define BARACUDA_N72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define BARACUDA_N80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define BARACUDA_N88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define BARACUDA_N96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define BARACUDA_N104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define BARACUDA_N112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define BARACUDA_N120 "%120, %121, %122, %123, %124, %125, %126, %127"

#define BARACUDA_R8(i)                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

#define BARACUDA_NAMES8 BARACUDA_N0
#define BARACUDA_OPERANDS8 BARACUDA_R8(0)
#define BARACUDA_NAMES16 BARACUDA_NAMES8 ", " BARACUDA_N8
#define BARACUDA_OPERANDS16 BARACUDA_OPERANDS8, BARACUDA_R8(8)
#define BARACUDA_NAMES24 BARACUDA_NAMES16 ", " BARACUDA_N16
#define BARACUDA_OPERANDS24 BARACUDA_OPERANDS16, BARACUDA_R8(16)
#define BARACUDA_NAMES32 BARACUDA_NAMES24 ", " BARACUDA_N24
#define BARACUDA_OPERANDS32 BARACUDA_OPERANDS24, BARACUDA_R8(24)
#define BARACUDA_NAMES40 BARACUDA_NAMES32 ", " BARACUDA_N32
#define BARACUDA_OPERANDS40 BARACUDA_OPERANDS32, BARACUDA_R8(32)
#define BARACUDA_NAMES48 BARACUDA_NAMES40 ", " BARACUDA_N40
#define BARACUDA_OPERANDS48 BARACUDA_OPERANDS40, BARACUDA_R8(40)
#define BARACUDA_NAMES56 BARACUDA_NAMES48 ", " BARACUDA_N48
#define BARACUDA_OPERANDS56 BARACUDA_OPERANDS48, BARACUDA_R8(48)
#define BARACUDA_NAMES64 BARACUDA_NAMES56 ", " BARACUDA_N56
#define BARACUDA_OPERANDS64 BARACUDA_OPERANDS56, BARACUDA_R8(56)
#define BARACUDA_NAMES72 BARACUDA_NAMES64 ", " BARACUDA_N64
#define BARACUDA_OPERANDS72 BARACUDA_OPERANDS64, BARACUDA_R8(64)
#define BARACUDA_NAMES80 BARACUDA_NAMES72 ", " BARACUDA_N72
#define BARACUDA_OPERANDS80 BARACUDA_OPERANDS72, BARACUDA_R8(72)
#define BARACUDA_NAMES88 BARACUDA_NAMES80 ", " BARACUDA_N80
#define BARACUDA_OPERANDS88 BARACUDA_OPERANDS80, BARACUDA_R8(80)
#define BARACUDA_NAMES96 BARACUDA_NAMES88 ", " BARACUDA_N88
#define BARACUDA_OPERANDS96 BARACUDA_OPERANDS88, BARACUDA_R8(88)
#define BARACUDA_NAMES104 BARACUDA_NAMES96 ", " BARACUDA_N96
#define BARACUDA_OPERANDS104 BARACUDA_OPERANDS96, BARACUDA_R8(96)
#define BARACUDA_NAMES112 BARACUDA_NAMES104 ", " BARACUDA_N104
#define BARACUDA_OPERANDS112 BARACUDA_OPERANDS104, BARACUDA_R8(104)
#define BARACUDA_NAMES120 BARACUDA_NAMES112 ", " BARACUDA_N112
#define BARACUDA_OPERANDS120 BARACUDA_OPERANDS112, BARACUDA_R8(112)
#define BARACUDA_NAMES128 BARACUDA_NAMES120 ", " BARACUDA_N120
#define BARACUDA_OPERANDS128 BARACUDA_OPERANDS120, BARACUDA_R8(120)

#define BARACUDA_WGMMA_SS(TYPE, N, REGS, A, B, ADD)                                             \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #ADD ", 0;\n"                           \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                   \
               " {" BARACUDA_NAMES##REGS "}, %" #A ", %" #B ", add, 1, 1, 0, 0;\n}\n"             \
               : BARACUDA_OPERANDS##REGS                                                         \
               : "l"(a), "l"(b), "r"(accumulate))

#define BARACUDA_WGMMA_RS(TYPE, N, REGS, A0, A1, A2, A3, B)                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                   \
               " {" BARACUDA_NAMES##REGS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B     \
               ", 1, 1, 1, 1;\n"                                                                 \
               : BARACUDA_OPERANDS##REGS                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define BARACUDA_WGMMA_RS_K(TYPE, N, REGS, A0, A1, A2, A3, B, ADD)                               \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #ADD ", 0;\n"                           \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                   \
               " {" BARACUDA_NAMES##REGS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B     \
               ", add, 1, 1, 0;\n}\n"                                                            \
               : BARACUDA_OPERANDS##REGS                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

#define BARACUDA_WGMMA_SS_MN(TYPE, N, REGS, A, B, ADD)                                          \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #ADD ", 0;\n"                           \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                   \
               " {" BARACUDA_NAMES##REGS "}, %" #A ", %" #B ", add, 1, 1, 1, 1;\n}\n"             \
               : BARACUDA_OPERANDS##REGS                                                         \
               : "l"(a), "l"(b), "r"(accumulate))

// d += a * b; a in registers, b K-major in shared memory.
__device__ __forceinline__ void wgmma_bf16_k_major(float (&d)[32], const uint32_t (&a)[4],
                                                   uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" BARACUDA_NAMES32
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;\n"
               : BARACUDA_OPERANDS32
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// d = a * b + (accumulate ? d : 0); a in registers, b K-major in shared memory.
template <typename Element>
__device__ __forceinline__ void wgmma_k_major(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                              int accumulate) {
  if constexpr (std::is_same_v<Element, __half>) {
    BARACUDA_WGMMA_RS_K("f16", 64, 32, 32, 33, 34, 35, 36, 37);
  } else {
    BARACUDA_WGMMA_RS_K("bf16", 64, 32, 32, 33, 34, 35, 36, 37);
  }
}

// d = a * b + (accumulate ? d : 0); a and b K-major in shared memory.
#define BARACUDA_DEFINE_SS(N, REGS, A, B, ADD)                                                   \
  template <typename Element>                                                                    \
  __device__ __forceinline__ void wgmma(float (&d)[REGS], uint64_t a, uint64_t b,                \
                                        int accumulate) {                                        \
    if constexpr (std::is_same_v<Element, __half>) {                                             \
      BARACUDA_WGMMA_SS("f16", N, REGS, A, B, ADD);                                              \
    } else {                                                                                     \
      BARACUDA_WGMMA_SS("bf16", N, REGS, A, B, ADD);                                             \
    }                                                                                            \
  }

// d += a * b; a in registers, b MN-major in shared memory.
#define BARACUDA_DEFINE_RS(N, REGS, A0, A1, A2, A3, B)                                           \
  template <typename Element>                                                                    \
  __device__ __forceinline__ void wgmma(float (&d)[REGS], const uint32_t (&a)[4], uint64_t b) {  \
    if constexpr (std::is_same_v<Element, __half>) {                                             \
      BARACUDA_WGMMA_RS("f16", N, REGS, A0, A1, A2, A3, B);                                      \
    } else {                                                                                     \
      BARACUDA_WGMMA_RS("bf16", N, REGS, A0, A1, A2, A3, B);                                     \
    }                                                                                            \
  }

// d = a * b + (accumulate ? d : 0); a and b MN-major in shared memory.
#define BARACUDA_DEFINE_SS_MN(N, REGS, A, B, ADD)                                                \
  template <typename Element>                                                                    \
  __device__ __forceinline__ void wgmma_mn_major(float (&d)[REGS], uint64_t a, uint64_t b,       \
                                                 int accumulate) {                               \
    if constexpr (std::is_same_v<Element, __half>) {                                             \
      BARACUDA_WGMMA_SS_MN("f16", N, REGS, A, B, ADD);                                           \
    } else {                                                                                     \
      BARACUDA_WGMMA_SS_MN("bf16", N, REGS, A, B, ADD);                                          \
    }                                                                                            \
  }

BARACUDA_DEFINE_SS(64, 32, 32, 33, 34)
BARACUDA_DEFINE_SS(80, 40, 40, 41, 42)
BARACUDA_DEFINE_SS(96, 48, 48, 49, 50)
BARACUDA_DEFINE_SS(112, 56, 56, 57, 58)
BARACUDA_DEFINE_SS(128, 64, 64, 65, 66)
BARACUDA_DEFINE_SS(144, 72, 72, 73, 74)
BARACUDA_DEFINE_SS(160, 80, 80, 81, 82)
BARACUDA_DEFINE_SS(176, 88, 88, 89, 90)
BARACUDA_DEFINE_SS(192, 96, 96, 97, 98)

BARACUDA_DEFINE_SS_MN(64, 32, 32, 33, 34)
BARACUDA_DEFINE_SS_MN(128, 64, 64, 65, 66)

BARACUDA_DEFINE_RS(64, 32, 32, 33, 34, 35, 36)
BARACUDA_DEFINE_RS(128, 64, 64, 65, 66, 67, 68)
BARACUDA_DEFINE_RS(256, 128, 128, 129, 130, 131, 132)

}  // namespace baracuda
