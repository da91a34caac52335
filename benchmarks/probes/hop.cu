// What a hop between two GPUs of one host costs: K and V, the copies' starts and the words around them.
//
//   nvcc -O3 -std=c++17 -gencode arch=compute_90,code=sm_90 -o hop hop.cu && ./hop
//
// One process, two GPUs, both directions at once. Everything is enqueued before a word of the CPU lets
// both streams begin, so that neither direction waits for the other to be enqueued. Words lie in
// mapped host memory, as those of the exchange by peer do. Prints GB/s each way by events around a
// hop, medians of 15, next to kernels that hold every SM and next to none.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

enum Copies { kOne, kTwo, kTwoStreams, kBatch, kRows, kRowsApart, kCopies };
const char* const copy_names[] = {"one copy",
                                  "K, then V",
                                  "K and V on two streams",
                                  "K and V by a batch call",
                                  "K and V as two rows",
                                  "rows of two allocations"};
// How the words go: reset before the copies or after them, one by one or in batches; kArrival: until
// the word that the next step waits for.
enum Words { kNone, kEarly, kLater, kArrival, kBatched, kAllBatched, kWordKinds };
const char* const word_names[] = {"no words",       "reset first",      "reset later",
                                  "to the arrival", "writes in a batch", "all in batches"};

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  std::printf("%s: driver error %d\n", what, static_cast<int>(result));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

CUresult (*wait_value)(CUstream, CUdeviceptr, cuuint64_t, unsigned);
CUresult (*write_value)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
CUresult (*batch_ops)(CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned);

template <typename F>
void find(const char* name, F* function) {
  cudaDriverEntryPointQueryResult result{};
  CHECK(cudaGetDriverEntryPointByVersion(name, reinterpret_cast<void**>(function), 12000,
                                         cudaEnableDefault, &result));
}

// Holds every SM, and reads its own memory all the while.
__global__ void __launch_bounds__(256) hold(const float4* data, size_t count, long long cycles,
                                            float* sink) {
  extern __shared__ float unused[];
  const long long begin = clock64();
  float sum = 0;
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; clock64() - begin < cycles;
       i = (i + gridDim.x * blockDim.x) % count) {
    sum += data[i].x;
  }
  if (sum == 0.5f) *sink = sum + unused[0];
}

struct Side {
  int device = 0;
  cudaStream_t stream{}, second{}, compute{};
  cudaEvent_t begin{}, end{}, fork{}, join{};
  char *from = nullptr, *other = nullptr, *into = nullptr;
  float4* data = nullptr;
  float* sink = nullptr;
};

Side sides[2];
volatile uint64_t* words = nullptr;  // start, then 8 a side
char* device_words = nullptr;
constexpr size_t kMost = size_t{1} << 27, kData = size_t{1} << 26;
constexpr int kShared = 180 * 1024;

enum Word { kGranted, kFull, kArrived };
CUdeviceptr word(int side, int which) {
  return reinterpret_cast<CUdeviceptr>(device_words + 64 * (8 + 8 * side + which));
}
void await_word(Side& s, CUdeviceptr at) {
  CHECK(wait_value(s.stream, at, 1, CU_STREAM_WAIT_VALUE_AND));
}
void set_word(Side& s, CUdeviceptr at, uint32_t value) {
  CHECK(write_value(s.stream, at, value, CU_STREAM_WRITE_VALUE_DEFAULT));
}

CUstreamBatchMemOpParams set_op(CUdeviceptr at, uint32_t value) {
  CUstreamBatchMemOpParams op{};
  op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
  op.writeValue.address = at;
  op.writeValue.value = value;
  return op;
}
CUstreamBatchMemOpParams wait_op(CUdeviceptr at) {
  CUstreamBatchMemOpParams op{};
  op.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_64;
  op.waitValue.address = at;
  op.waitValue.value64 = 1;
  op.waitValue.flags = CU_STREAM_WAIT_VALUE_AND;
  return op;
}
void batch(Side& s, std::vector<CUstreamBatchMemOpParams> ops) {
  CHECK(batch_ops(s.stream, static_cast<unsigned>(ops.size()), ops.data(), 0));
}

void copy(Side& s, char* into, const char* from, size_t bytes, cudaStream_t stream) {
  CHECK(cudaMemcpyAsync(into, from, bytes, cudaMemcpyDefault, stream));
}

void copies(Side& s, char* into, size_t bytes, Copies how) {
  const size_t half = bytes / 2;
  // K and V of a caller do not lie together.
  const char *const k = s.from, *const v = s.from + half + 4096;
  if (how == kOne) return copy(s, into, k, bytes, s.stream);
  if (how == kTwo) {
    copy(s, into, k, half, s.stream);
    return copy(s, into + half, v, half, s.stream);
  }
  if (how == kTwoStreams) {
    CHECK(cudaEventRecord(s.fork, s.stream));
    CHECK(cudaStreamWaitEvent(s.second, s.fork));
    copy(s, into, k, half, s.stream);
    copy(s, into + half, v, half, s.second);
    CHECK(cudaEventRecord(s.join, s.second));
    CHECK(cudaStreamWaitEvent(s.stream, s.join));
    return;
  }
  if (how == kRows || how == kRowsApart) {
    const char* const first = how == kRows ? k : std::min<const char*>(s.from, s.other);
    const char* const second = how == kRows ? v : std::max<const char*>(s.from, s.other);
    const cudaError_t error =
        cudaMemcpy2DAsync(into, half, first, static_cast<size_t>(second - first), half, 2,
                          cudaMemcpyDefault, s.stream);
    if (error == cudaSuccess) return;
    static bool said[kCopies] = {};
    if (!said[how]) std::printf("  (%s: %s)\n", copy_names[how], cudaGetErrorString(error));
    said[how] = true;
    cudaGetLastError();
    copy(s, into, first, half, s.stream);
    return copy(s, into + half, second, half, s.stream);
  }
  const void* sources[] = {k, v};
  void* targets[] = {into, into + half};
  size_t sizes[] = {half, half}, first[] = {0};
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  CHECK(cudaMemcpyBatchAsync(targets, sources, sizes, 2, &attributes, first, 1, s.stream));
}

void hop(int side, size_t bytes, Copies how, Words kind) {
  Side& s = sides[side];
  const int other = 1 - side;
  CHECK(cudaSetDevice(s.device));
  await_word(s, reinterpret_cast<CUdeviceptr>(device_words));
  CHECK(cudaEventRecord(s.begin, s.stream));
  if (kind == kNone) {
    copies(s, sides[other].into, bytes, how);
  } else if (kind == kEarly) {
    set_word(s, word(side, kGranted), 1);
    await_word(s, word(other, kGranted));
    set_word(s, word(other, kGranted), 0);
    copies(s, sides[other].into, bytes, how);
    set_word(s, word(other, kFull), 1);
    set_word(s, word(other, kArrived), 1);
    await_word(s, word(side, kFull));
    set_word(s, word(side, kFull), 0);
  } else if (kind == kAllBatched) {
    batch(s, {set_op(word(side, kGranted), 1), wait_op(word(other, kGranted))});
    copies(s, sides[other].into, bytes, how);
    batch(s, {set_op(word(other, kArrived), 1), set_op(word(other, kGranted), 0),
              set_op(word(other, kFull), 1), wait_op(word(side, kFull))});
  } else {
    set_word(s, word(side, kGranted), 1);
    await_word(s, word(other, kGranted));
    copies(s, sides[other].into, bytes, how);
    if (kind == kBatched) {
      batch(s, {set_op(word(other, kArrived), 1), set_op(word(other, kGranted), 0),
                set_op(word(other, kFull), 1)});
    } else {
      set_word(s, word(other, kArrived), 1);
      if (kind == kArrival) await_word(s, word(side, kArrived));
      if (kind == kArrival) CHECK(cudaEventRecord(s.end, s.stream));
      set_word(s, word(other, kGranted), 0);
      set_word(s, word(other, kFull), 1);
    }
    await_word(s, word(side, kFull));
  }
  if (kind != kArrival) CHECK(cudaEventRecord(s.end, s.stream));
  if (kind == kNone || kind == kEarly) return;
  set_word(s, word(side, kFull), 0);
  set_word(s, word(side, kArrived), 0);
}

float median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The slower direction's milliseconds.
float measure(size_t bytes, Copies how, Words kind, bool beside) {
  std::vector<float> found;
  for (int run = 0; run < 17; ++run) {
    words[0] = 0;
    for (int side = 0; side < 2; ++side) hop(side, bytes, how, kind);
    for (Side& s : sides) {
      CHECK(cudaSetDevice(s.device));
      if (!beside) continue;
      hold<<<132, 256, kShared, s.compute>>>(s.data, kData / sizeof(float4), 2'000'000, s.sink);
      CHECK(cudaGetLastError());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(beside ? 200 : 50));
    words[0] = 1;
    float slower = 0;
    for (Side& s : sides) {
      CHECK(cudaSetDevice(s.device));
      CHECK(cudaDeviceSynchronize());
      float ms = 0;
      CHECK(cudaEventElapsedTime(&ms, s.begin, s.end));
      slower = std::max(slower, ms);
    }
    if (run >= 2) found.push_back(slower);
  }
  return median(found);
}

void open(Side& s, int device) {
  s.device = device;
  CHECK(cudaSetDevice(device));
  CHECK(cudaDeviceEnablePeerAccess(1 - device, 0));
  int low = 0, high = 0;
  CHECK(cudaDeviceGetStreamPriorityRange(&low, &high));
  CHECK(cudaStreamCreateWithPriority(&s.stream, cudaStreamNonBlocking, high));
  CHECK(cudaStreamCreateWithPriority(&s.second, cudaStreamNonBlocking, high));
  CHECK(cudaStreamCreateWithFlags(&s.compute, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&s.begin, &s.end}) CHECK(cudaEventCreate(event));
  for (cudaEvent_t* event : {&s.fork, &s.join}) {
    CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  }
  CHECK(cudaMalloc(&s.from, kMost + 8192));
  CHECK(cudaMalloc(&s.other, kMost));
  CHECK(cudaMalloc(&s.into, kMost));
  CHECK(cudaMalloc(&s.data, kData));
  CHECK(cudaMalloc(&s.sink, 4));
  CHECK(cudaMemset(s.data, 0, kData));
  CHECK(cudaFuncSetAttribute(hold, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  // Loading it later would wait for streams that wait for the CPU.
  hold<<<1, 256, kShared>>>(s.data, kData / sizeof(float4), 0, s.sink);
  CHECK(cudaDeviceSynchronize());
}

}  // namespace

int main() {
  int count = 0;
  CHECK(cudaGetDeviceCount(&count));
  if (count < 2) return std::puts("needs two GPUs"), 1;
  void* memory = nullptr;
  CHECK(cudaHostAlloc(&memory, 4096, cudaHostAllocMapped | cudaHostAllocPortable));
  std::memset(memory, 0, 4096);
  words = static_cast<volatile uint64_t*>(memory);
  device_words = static_cast<char*>(memory);  // unified addressing
  find("cuStreamWaitValue64", &wait_value);
  find("cuStreamWriteValue32", &write_value);
  find("cuStreamBatchMemOp", &batch_ops);
  for (int d = 0; d < 2; ++d) open(sides[d], d);
  for (const size_t bytes : {size_t{1} << 22, size_t{1} << 23, size_t{1} << 25}) {
    for (const bool beside : {false, true}) {
      std::printf("%.1f MB, %s\n", static_cast<double>(bytes) / 1e6,
                  beside ? "beside kernels" : "alone");
      for (int how = 0; how < kCopies; ++how) {
        for (int kind = 0; kind < kWordKinds; ++kind) {
          if (kind > kNone && how != kOne && how != kTwo) continue;
          const float ms =
              measure(bytes, static_cast<Copies>(how), static_cast<Words>(kind), beside);
          std::printf("  %-30s %-17s %7.1f us %5.0f GB/s\n", copy_names[how], word_names[kind],
                      1e3 * ms, static_cast<double>(bytes) / ms / 1e6);
          std::fflush(stdout);
        }
      }
    }
  }
  return 0;
}
