// How fast a Hopper GPU adds f32 tiles to global memory, as dQ of a backward pass would be: by
// red.global.add.v4.f32 from registers and by bulk reduce from shared memory, from every SM at once.
//
//   nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -o f32_reductions f32_reductions.cu
//
// A tile is `kRows` rows of 128 columns (head_dim 128), dense. A block adds to the tiles of its head one
// after the other and begins at a tile of its own, as key tiles of one head would. Prints, per way and
// number of tiles in flight over the whole device: GB/s of addends, and bytes a cycle and SM.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr int kRows = 64, kColumns = 128, kTile = kRows * kColumns;  // 32 KB
constexpr int kThreads = 256;

enum Way { kRedV4, kRedV2, kRedScalar, kBulk32, kBulk8, kBulkLast, kStoreV4 };
const char* const names[] = {"red.v4",       "red.v2",  "red scalar",      "bulk reduce 32 KB",
                             "bulk 4x 8 KB", "bulk 32 KB evict_last", "st.v4 (no add)"};

__device__ void red_v4(float* p, float4 x) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x.x),
               "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
}
__device__ void red_v2(float* p, float x, float y) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x), "f"(y)
               : "memory");
}
__device__ void bulk(float* p, uint32_t shared, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(p),
      "r"(shared), "r"(bytes)
      : "memory");
}
__device__ void bulk_last(float* p, uint32_t shared, int bytes) {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.f32 [%0], [%1], %2, %3;"
      ::"l"(p), "r"(shared), "r"(bytes), "l"(policy)
      : "memory");
}

template <Way W>
__global__ void __launch_bounds__(kThreads, 1)
    add_tiles(float* out, int heads, int tiles, int steps, long long* cycles) {
  extern __shared__ __align__(128) float shared[];
  for (int i = threadIdx.x; i < 2 * kTile; i += kThreads) shared[i] = 1.0f;
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  const int per_head = gridDim.x / heads > 0 ? gridDim.x / heads : 1;
  const int head = blockIdx.x / per_head % heads;
  int tile = blockIdx.x % per_head * (tiles / per_head > 0 ? tiles / per_head : 1) % tiles;
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const long long begin = clock64();
  for (int step = 0; step < steps; ++step) {
    float* const to = out + (static_cast<int64_t>(head) * tiles + tile) * kTile;
    if constexpr (W == kRedV4 || W == kStoreV4) {
#pragma unroll
      for (int i = 0; i < kTile / 4 / kThreads; ++i) {
        float* const p = to + (i * kThreads + threadIdx.x) * 4;
        const float4 x = make_float4(1, 1, 1, step);
        if constexpr (W == kRedV4) {
          red_v4(p, x);
        } else {
          __stcg(reinterpret_cast<float4*>(p), x);
        }
      }
    } else if constexpr (W == kRedV2) {
#pragma unroll
      for (int i = 0; i < kTile / 2 / kThreads; ++i) red_v2(to + (i * kThreads + threadIdx.x) * 2, 1, 1);
    } else if constexpr (W == kRedScalar) {
#pragma unroll 8
      for (int i = 0; i < kTile / kThreads; ++i)
        asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(to + i * kThreads + threadIdx.x),
                     "f"(1.0f)
                     : "memory");
    } else if (threadIdx.x == 0) {
      const uint32_t from = address + step % 2 * kTile * 4;
      if constexpr (W == kBulk32) {
        bulk(to, from, kTile * 4);
      } else if constexpr (W == kBulkLast) {
        bulk_last(to, from, kTile * 4);
      } else {
        for (int i = 0; i < 4; ++i) bulk(to + i * kTile / 4, from + i * kTile, kTile);
      }
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      // Shared memory of two tiles: wait until the one before last has been read.
      asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
    }
    tile = tile + 1 < tiles ? tile + 1 : 0;
  }
  if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - begin;
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <Way W>
void measure(float* out, long long* cycles, int sms, int heads, int tiles) {
  constexpr int steps = 512, shared = 2 * kTile * 4;
  check(cudaFuncSetAttribute(add_tiles<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  std::vector<float> milliseconds;
  std::vector<long long> each(static_cast<size_t>(sms));
  cudaEvent_t from, to;
  check(cudaEventCreate(&from));
  check(cudaEventCreate(&to));
  for (int round = 0; round < 7; ++round) {
    check(cudaEventRecord(from));
    add_tiles<W><<<sms, kThreads, shared>>>(out, heads, tiles, steps, cycles);
    check(cudaEventRecord(to));
    check(cudaEventSynchronize(to));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, from, to));
    if (round > 1) milliseconds.push_back(ms);
  }
  check(cudaMemcpy(each.data(), cycles, sms * sizeof(long long), cudaMemcpyDeviceToHost));
  std::sort(milliseconds.begin(), milliseconds.end());
  const double ms = milliseconds[milliseconds.size() / 2];
  const double bytes = double(sms) * steps * kTile * 4;
  const double slowest = static_cast<double>(*std::max_element(each.begin(), each.end()));
  std::printf("%-24s heads %2d tiles %4d (%5.1f MB)  %7.0f GB/s  %5.1f B/cycle/SM\n", names[W], heads,
              tiles, double(heads) * tiles * kTile * 4 / 1e6, bytes / ms / 1e6,
              double(steps) * kTile * 4 / slowest);
}

template <Way W>
void measure_all(float* out, long long* cycles, int sms) {
  measure<W>(out, cycles, sms, 16, 16);    // 8 MB: S 1k, H 16
  measure<W>(out, cycles, sms, 16, 128);   // 67 MB: S 8k, H 16
  measure<W>(out, cycles, sms, 2, 256);    // 17 MB: S 16k, of which two heads are at work
}

}  // namespace

int main() {
  int sms = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  float* out = nullptr;
  long long* cycles = nullptr;
  check(cudaMalloc(&out, size_t{16} * 128 * kTile * 4));
  check(cudaMemset(out, 0, size_t{16} * 128 * kTile * 4));
  check(cudaMalloc(&cycles, sms * sizeof(long long)));
  measure_all<kRedV4>(out, cycles, sms);
  measure_all<kRedV2>(out, cycles, sms);
  measure_all<kRedScalar>(out, cycles, sms);
  measure_all<kBulk32>(out, cycles, sms);
  measure_all<kBulk8>(out, cycles, sms);
  measure_all<kBulkLast>(out, cycles, sms);
  measure_all<kStoreV4>(out, cycles, sms);
  return 0;
}
