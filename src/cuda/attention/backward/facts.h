// The facts of each kernel family's backward. Builds without CUDA have them too.
#pragma once

#include <stdint.h>

#include <string>

#include "attention/forward/families.h"

namespace baracuda {

// The family of a kernel that the backward entries take, ordered or not.
int32_t backward_family(int32_t kernel);

// Null if the family has no backward; the build need not contain the family.
const FamilyFacts* find_backward_facts(int32_t kernel);

// Whether every sum has a fixed order.
bool is_backward_ordered(int32_t kernel);

// As refusal(), for the backward.
std::string backward_refusal(int32_t kernel, const StepParams& p);

}  // namespace baracuda
