// Shared by the handlers of XLA's custom calls: attributes, buffers, the problem, errors.
#pragma once

#include <stdint.h>

#include <initializer_list>

#include "attention/forward/family.h"
#include "attention/problem.h"
#include "common/error.h"
#include "interop/xla_ffi_abi.h"

namespace baracuda {
namespace xla {

constexpr const char* kCall = "baracuda_xla_attention";

enum class Stage { kLoad, kStep };

// An int64 attribute and its destination.
struct Integer {
  const char* name;
  int64_t* value;
};

int32_t read_integers(const Attributes& attributes, std::initializer_list<Integer> integers);
int32_t read_float(const Attributes& attributes, const char* name, double& value);
// Checks the attribute sequence_dim after it has been read.
int32_t check_sequence_dim(int64_t sequence_dim);

// Operands, or results, in order.
class Buffers {
 public:
  Buffers(const char* kind, const Values& values) : kind_(kind), values_(values) {}

  // The next one; rank < 0 takes any.
  int32_t next(const char* name, int64_t rank, const Buffer*& buffer) {
    if (taken_ >= values_.size || values_.types[taken_] != kBuffer) {
      return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%s %lld (%s): got none, must be a buffer",
                  kind_,
                  static_cast<long long>(taken_), name);
    }
    buffer = static_cast<const Buffer*>(values_.values[taken_++]);
    if (rank >= 0 && buffer->rank != rank) {
      return fail(BARACUDA_INVALID_ARGUMENT, kCall, "%s: got %lld dimensions, must have %lld", name,
                  static_cast<long long>(buffer->rank), static_cast<long long>(rank));
    }
    return BARACUDA_OK;
  }

  int32_t end() const {
    if (taken_ == values_.size) return BARACUDA_OK;
    return fail(BARACUDA_INVALID_ARGUMENT, kCall, "call frame: got %lld %ss, must have %lld",
                static_cast<long long>(values_.size), kind_, static_cast<long long>(taken_));
  }

 private:
  const char* kind_;
  const Values& values_;
  int64_t taken_ = 0;
};

// The baracuda_element of a buffer; -1 if it has none.
int32_t find_element(const Buffer& buffer);

int64_t bytes_of(const Buffer& buffer);

// Of [B, H, S, D] (sequence_dim 2) or [B, S, H, D] (sequence_dim 1).
baracuda_strides dense_strides(const Buffer& buffer, int64_t sequence_dim);

int32_t check_same(const char* name, const Buffer& buffer, const Buffer& like,
                   const char* like_name);

// Of the accumulator's type, [B, H, Q] with any extents of 1 behind them.
int32_t check_rows(const char* name, const Buffer& buffer, const StepParams& step);

// q, k and v, which are the first operands: their memory, and the problem's extents.
int32_t bind_problem(Buffers& operands, int64_t sequence_dim, StepParams& step);

// The position maps of q and k, in the memory that the kernel reads.
int32_t bind_maps(Buffers& operands, StepParams& step);

// The state or scratch, which a step gets as an operand (before) and returns as a result (after) in
// the same memory. before is null in the first step; after may be null in the last one.
int32_t bind_in_place(const char* name, const Buffer* before, const Buffer* after, int64_t needed,
                      void** memory);

// Loads the kernels that make_room() may launch.
int32_t load_room();
// Delays a step on a GPU if an exchange of XLA's own must start before it (ring/margin.h). The NCCL
// kernels of XLA's exchanges are launched in clusters.
int32_t make_room(const StepGrid& grid, int32_t sm_margin, void* stream);

// Answers XLA's question for the version, or runs the call; its failure becomes an XLA error.
void* handle(void* frame, Stage stage, bool cuda,
             int32_t (*run)(const CallFrame& frame, Stage stage, void* stream));

}  // namespace xla
}  // namespace baracuda
