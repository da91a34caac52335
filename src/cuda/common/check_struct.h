// The check of a struct that a caller made: given, and of the size that this build knows.
#pragma once

#include "common/error.h"

namespace baracuda {

template <typename Struct>
int32_t check_struct(const char* call, const char* name, const Struct* given) {
  if (given == nullptr)
    return fail(BARACUDA_INVALID_ARGUMENT, call, "%s: got NULL, must be given", name);
  if (given->struct_size == sizeof(Struct)) return BARACUDA_OK;
  return fail(BARACUDA_INVALID_ARGUMENT, call, "%s.struct_size: got %llu, must be %zu", name,
              static_cast<unsigned long long>(given->struct_size), sizeof(Struct));
}

}  // namespace baracuda
