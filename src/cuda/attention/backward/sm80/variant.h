// The instantiations of the sm80 backward. Each function below has a file of its own.
#pragma once

#include "attention/backward/family.h"

namespace baracuda::sm80::backward {

// The two instantiations for one head_dim and element type. They use the same scratch.
struct Variants {
  BackwardFamily fast;
  int fast_shared_bytes;   // shared memory that a block of `fast` needs
  BackwardFamily compact;  // fits in the shared memory of every supported device (99 KB)
};

// is_bf16: the element type is bf16, else f16.
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
