// The instantiations of the sm80 backward, one file per head_dim.
#pragma once

#include "attention/backward/family.h"

namespace baracuda::sm80::backward {

// Two kernels with the same scratch. Every device has enough shared memory for the compact one.
struct Variants {
  BackwardFamily fast;
  int fast_shared_bytes;  // of a block
  BackwardFamily compact;
};

// is_bf16: bf16, else f16.
Variants variants_d64(bool is_bf16);
Variants variants_d96(bool is_bf16);
Variants variants_d128(bool is_bf16);
Variants variants_d192(bool is_bf16);
Variants variants_d256(bool is_bf16);
Variants variants_d64_ordered(bool is_bf16);
Variants variants_d96_ordered(bool is_bf16);
Variants variants_d128_ordered(bool is_bf16);
Variants variants_d192_ordered(bool is_bf16);
Variants variants_d256_ordered(bool is_bf16);

}  // namespace baracuda::sm80::backward
