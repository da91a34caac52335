// What the backward of each kernel family takes and promises, in builds without CUDA too.
#pragma once

#include <stdint.h>

#include <string>

#include "attention/forward/families.h"

namespace baracuda {

// The family that a number of the backward entries belongs to.
int32_t backward_family(int32_t kernel);

// Null where the family has no backward, whether it is in this build or not.
const FamilyFacts* find_backward_facts(int32_t kernel);

// Whether every sum has a fixed order.
bool is_backward_ordered(int32_t kernel);

// As refusal(), of the backward.
std::string backward_refusal(int32_t kernel, const StepParams& p);

}  // namespace baracuda
