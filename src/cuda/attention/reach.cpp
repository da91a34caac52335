#include "attention/reach.h"

#include "common/error.h"

namespace baracuda {
namespace {

__extension__ using Wide = __int128;

// The stride of a dimension of extent 1 is never used, so it may be anything.
Wide span(int64_t stride, int64_t extent) {
  const Wide size = stride < 0 ? -Wide{stride} : Wide{stride};
  return extent > 1 ? size * (extent - 1) : 0;
}

}  // namespace

int32_t check_reach(const char* call, const char* name, const baracuda_strides& strides,
                    const StepParams& p, int64_t heads, int64_t length, int64_t row_elements,
                    int64_t element_bytes) {
  const Wide most = INT64_MAX / element_bytes - row_elements;
  const Wide batch = span(strides.batch, p.batch), head = span(strides.head, heads),
             seq = span(strides.seq, length);
  // Each is at most 2^126, so they are compared before they are added.
  if (batch <= most && head <= most && seq <= most && batch + head + seq <= most)
    return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call,
              "%s: got batch, head and sequence strides of %lld, %lld and %lld elements, must keep "
              "all offsets below 2^63 bytes",
              name, static_cast<long long>(strides.batch), static_cast<long long>(strides.head),
              static_cast<long long>(strides.seq));
}

}  // namespace baracuda
