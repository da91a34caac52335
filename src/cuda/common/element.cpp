#include "baracuda/element.h"

extern "C" int64_t baracuda_element_bytes(int32_t element) {
  switch (element) {
    case BARACUDA_F16:
    case BARACUDA_BF16: return 2;
    case BARACUDA_F32: return 4;
    case BARACUDA_F64: return 8;
    default: return 0;
  }
}
