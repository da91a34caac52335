// The unit of work of the host family: some query rows that share one K/V head, and a whole chunk
// of keys. The driver (family.cpp) fills it; the kernels, one per instruction set, compute it.
//
// The kernels are compiled for wider instruction sets than the rest of the library. Of the headers
// that other code includes too, they include only this one and row_result.h: the linker might use
// their copy of a shared inline function elsewhere.
#pragma once

#include <stdint.h>

namespace baracuda {
namespace host {

constexpr int64_t kMaxBlockRows = 128;
constexpr int64_t kMaxHeadDim = 1024;
// More than the largest case needs (1.9 MiB: f64, head_dim 1024). Only touched pages become
// resident.
constexpr int64_t kScratchBytes = int64_t(5) << 19;

// True if the current work should end early, because its result is no longer needed. Checked once
// per tile of keys, since an item may take long.
struct StopCheck {
  bool (*ask)(void* context);
  void* context;
};

struct BlockProblem {
  const void* k;
  const void* v;
  int64_t k_stride;  // elements between keys
  int64_t v_stride;
  int64_t head_dim;
  double scale;
  int32_t element;
  int32_t lse_element;
  bool first;
  bool last;
  void* state;        // o_acc [total_rows, head_dim], m [total_rows], l [total_rows]
  void* lse;          // may be null
  int64_t total_rows;
  StopCheck stop;
};

struct BlockRows {
  int64_t count;
  const void* q[kMaxBlockRows];
  void* y[kMaxBlockRows];
  int64_t row[kMaxBlockRows];      // index into state and lse
  int64_t begin[kMaxBlockRows];  // the keys [begin, end) of the chunk are seen
  int64_t end[kMaxBlockRows];
};

// scratch: kScratchBytes, aligned to 64.
using BlockFunction = void (*)(const BlockProblem&, const BlockRows&, void* scratch);

struct IsaKernels {
  const char* name;
  BlockFunction run[4];  // by enum baracuda_element
};

// Whether BARACUDA_HOST_ISA, if set, names an instruction set.
int32_t check_isa_variable(const char* call);

// The best set this CPU runs, or a lower one named by BARACUDA_HOST_ISA; decided once.
enum class Isa { baseline, avx2, avx512 };
Isa chosen_isa();

extern const IsaKernels kBaselineKernels;
#if defined(__x86_64__)
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;
#endif

const IsaKernels& isa_kernels();

}  // namespace host
}  // namespace baracuda
