// The choice between two sizes of key tiles at head_dim 64.
#pragma once

#include "attention/backward/family.h"

namespace baracuda::sm90::backward {

// True if a step should have key tiles of 256 keys instead of 128. Larger tiles halve the additions
// to dQ and the reads of Q and dO. But they are fewer and longer, and blocks without a tile in the
// last round may lose more time than that saves. The state is the same for both sizes, so each step
// chooses for itself.
inline bool takes_double_tiles(const StepParams& p) {
  constexpr int64_t blocks = 132;  // an H100's; the result is right with any number
  const int64_t heads = p.batch * p.kv_heads;
  const auto rounds_of = [&](int64_t keys) {
    return (heads * ((p.key_len + keys - 1) / keys) + blocks - 1) / blocks;
  };
  // Under a mask, too large a part of a short double tile is on the diagonal.
  const bool is_short = borders_may_vary(p) && p.query_len < 2048;
  return !is_short && 19 * rounds_of(256) <= 10 * rounds_of(128);
}

}  // namespace baracuda::sm90::backward
