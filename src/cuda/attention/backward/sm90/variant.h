// The instantiations of the sm90a backward, one file per head_dim.
#pragma once

#include "attention/backward/family.h"

namespace baracuda::sm90::backward {

// The instantiations for the problem's element.
BackwardFamily variant_d64(const StepParams& problem);
BackwardFamily variant_d128(const StepParams& problem);
BackwardFamily variant_d256(const StepParams& problem);
BackwardFamily variant_d64_ordered(const StepParams& problem);
BackwardFamily variant_d128_ordered(const StepParams& problem);
BackwardFamily variant_d256_ordered(const StepParams& problem);

}  // namespace baracuda::sm90::backward
