#include "baracuda/build_info.h"

extern "C" {

const char* baracuda_version(void) { return BARACUDA_VERSION; }
const char* baracuda_source_hash(void) { return BARACUDA_SOURCE_HASH; }
const char* baracuda_architectures(void) { return BARACUDA_ARCHITECTURES; }
const char* baracuda_nvcc_version(void) { return BARACUDA_NVCC; }
const char* baracuda_cxx_compiler(void) { return BARACUDA_CXX; }

}  // extern "C"
