// Which of two sizes a step's key tiles have at head_dim 64.
#pragma once

#include "attention/backward/family.h"

namespace baracuda::sm90::backward {

// Of 256 keys: half as many additions to dQ and reads of Q and dO, but fewer, longer tiles. Not
// where those leave blocks without work for longer than they save. The state is the same for both,
// so that each step chooses by its own keys.
inline bool takes_double_tiles(const StepParams& p) {
  constexpr int64_t blocks = 132;  // of the cards there are; any number would be right
  const int64_t heads = p.batch * p.kv_heads;
  const auto rounds_of = [&](int64_t keys) {
    return (heads * ((p.key_len + keys - 1) / keys) + blocks - 1) / blocks;
  };
  // Under a mask a double tile of few query tiles is too much of it at the diagonal.
  const bool is_short = borders_may_vary(p) && p.query_len < 2048;
  return !is_short && 19 * rounds_of(256) <= 10 * rounds_of(128);
}

}  // namespace baracuda::sm90::backward
