// The units of work of the host family's backward: a tile of keys of one K/V head, and tiles of
// query rows. The driver (family.cpp) iterates over them; the kernels, one per instruction set,
// compute them. Of the headers that other code includes too, the kernels include only this one and
// block.h, for the reason given there.
#pragma once

#include <stdint.h>

#include "attention/forward/host/block.h"

namespace baracuda {
namespace host {

constexpr int64_t kMaxGradientRows = 64;
constexpr int64_t kMaxGradientKeys = 128;

// What all tiles of a call share. Tile sizes follow from the problem, never from the number of
// threads, because the order of sums determines the result's bits.
struct GradientShape {
  int64_t head_dim;
  double scale;
  int64_t tile_rows;
  int64_t tile_keys;
  bool wide_kv;  // dk and dv have the type of the sums
};

struct KeyTile {
  int64_t count;
  const void* k;  // of the tile's first key; strides are elements between keys
  const void* v;
  void* dk;
  void* dv;
  int64_t k_stride, v_stride, dk_stride, dv_stride;
};

struct RowTile {
  int64_t count;
  const void* q;  // of the tile's first row; strides are elements between rows
  const void* dy;
  void* dq;
  int64_t q_stride, dy_stride, dq_stride;
  const void* delta;  // this and all that follow have the type of the sums
  const void* lse;
  void* dq_sum;    // [count, head_dim], over the tiles of keys so far
  bool has_sum;    // there is such a sum
  bool is_last;    // dq is written, not dq_sum
  // The keys of the tile that each row sees.
  int64_t begin[kMaxGradientRows];
  int64_t end[kMaxGradientRows];
};

struct RowStatistics {
  int64_t count;
  const void* y;
  const void* dy;
  const void* lse;
  const void* dlse;  // may be null
  int64_t y_stride, dy_stride, lse_stride, dlse_stride;
  void* delta;
  void* lse_out;
};

// A contiguous run: out = received + share, both in the type of the sums.
struct SumRun {
  int64_t count;
  const void* received;
  const void* share;
  void* out;
  bool is_wide;  // out has the type of the sums, and may be the same memory as received
};

enum GradientsWanted { kWantDq = 1, kWantDkv = 2 };

// scratch is kScratchBytes, aligned to 64, and the same from start to finish.
struct GradientFunctions {
  // Delta and lse of rows (attention/backward/family.h).
  void (*prepare)(const GradientShape&, const RowStatistics&, void* scratch);
  // For each tile of keys: starts the sums of dk and dv, if they are needed; packs K and V before
  // the first tile of rows; writes dk and dv at the end.
  void (*start)(const GradientShape&, const KeyTile&, void* scratch);
  void (*pack)(const GradientShape&, const KeyTile&, void* scratch);
  void (*accumulate)(const GradientShape&, const KeyTile&, const RowTile&, int wanted,
                     void* scratch);
  void (*finish)(const GradientShape&, const KeyTile&, void* scratch);
  // Writes dq, or its sum, of rows that see no tile of keys.
  void (*skip)(const GradientShape&, const RowTile&, void* scratch);
  void (*add)(const SumRun&);
};

struct GradientKernels {
  GradientFunctions of[4];  // by enum baracuda_element
};

// The kernels of the chosen instruction set.
const GradientFunctions& gradient_functions_of(int32_t element);

extern const GradientKernels kBaselineGradients;
#if defined(__x86_64__)
extern const GradientKernels kAvx2Gradients;
extern const GradientKernels kAvx512Gradients;
#endif

}  // namespace host
}  // namespace baracuda
