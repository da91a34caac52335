// runtime.h and the CUDA stream table in a build without CUDA.
#if !defined(BARACUDA_WITH_CUDA)

#include "baracuda/exchange.h"
#include "baracuda/runtime.h"
#include "common/error.h"

namespace {

int32_t unavailable(const char* call) {
  return baracuda::fail(BARACUDA_UNAVAILABLE, call, "this build has no CUDA");
}

}  // namespace

extern "C" {

int32_t baracuda_cuda_built(void) { return 0; }

int32_t baracuda_cuda_runtime_version(void) { return 0; }

int32_t baracuda_cuda_driver_version(int32_t* version) {
  *version = 0;
  return unavailable("baracuda_cuda_driver_version");
}

int32_t baracuda_cuda_device_count(int32_t* count) {
  *count = 0;
  return BARACUDA_OK;
}

int32_t baracuda_cuda_current_device(int32_t*) {
  return unavailable("baracuda_cuda_current_device");
}

int32_t baracuda_cuda_set_device(int32_t) { return unavailable("baracuda_cuda_set_device"); }

int32_t baracuda_cuda_device_info(int32_t, baracuda_cuda_device*) {
  return unavailable("baracuda_cuda_device_info");
}

int32_t baracuda_cuda_stream_device(void*, int32_t*) {
  return unavailable("baracuda_cuda_stream_device");
}

int32_t baracuda_cuda_pointer_device(const void*, int32_t*) {
  return unavailable("baracuda_cuda_pointer_device");
}

int32_t baracuda_cuda_stream_synchronize(void*) {
  return unavailable("baracuda_cuda_stream_synchronize");
}

int32_t baracuda_cuda_stream_query(void*, int32_t*) {
  return unavailable("baracuda_cuda_stream_query");
}

int32_t baracuda_cuda_stream_is_capturing(void*, int32_t*) {
  return unavailable("baracuda_cuda_stream_is_capturing");
}

int32_t baracuda_cuda_copy(void*, const void*, int64_t, void*) {
  return unavailable("baracuda_cuda_copy");
}

const baracuda_stream_ops* baracuda_cuda_stream_ops(void) { return nullptr; }

}  // extern "C"

#endif  // !BARACUDA_WITH_CUDA
