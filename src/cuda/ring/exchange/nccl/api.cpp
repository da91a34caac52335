#include "ring/exchange/nccl/api.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <new>
#include <string>

#include "baracuda/nccl.h"
#include "baracuda/status.h"
#include "common/error.h"

namespace baracuda {
namespace {

struct Binding {
  std::string path;
  NcclApi api{};
};

std::mutex binding_mutex;
std::atomic<const Binding*> bound{nullptr};  // never freed: NCCL stays loaded

template <typename Function>
bool bind(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// Looks up all functions. Returns the name of the first required one that the library lacks, or
// NULL. (Every supported NCCL has the required ones.)
const char* bind_all(void* library, NcclApi& api) {
  const struct {
    const char* name;
    bool found;
  } required[] = {
      {"ncclGetVersion", bind(library, "ncclGetVersion", api.get_version)},
      {"ncclGetUniqueId", bind(library, "ncclGetUniqueId", api.get_unique_id)},
      {"ncclCommDestroy", bind(library, "ncclCommDestroy", api.comm_destroy)},
      {"ncclCommAbort", bind(library, "ncclCommAbort", api.comm_abort)},
      {"ncclCommGetAsyncError",
       bind(library, "ncclCommGetAsyncError", api.comm_get_async_error)},
      {"ncclCommCount", bind(library, "ncclCommCount", api.comm_count)},
      {"ncclCommUserRank", bind(library, "ncclCommUserRank", api.comm_user_rank)},
      {"ncclSend", bind(library, "ncclSend", api.send)},
      {"ncclRecv", bind(library, "ncclRecv", api.recv)},
      {"ncclGroupStart", bind(library, "ncclGroupStart", api.group_start)},
      {"ncclGroupEnd", bind(library, "ncclGroupEnd", api.group_end)},
      {"ncclGetErrorString", bind(library, "ncclGetErrorString", api.get_error_string)},
  };
  bind(library, "ncclGetLastError", api.get_last_error);
  bind(library, "ncclCommCuDevice", api.comm_cu_device);
  bind(library, "ncclCommInitRankConfig", api.comm_init_rank_config);
  bind(library, "ncclCommSplit", api.comm_split);
  for (const auto& function : required) {
    if (!function.found) return function.name;
  }
  return nullptr;
}

int32_t load(const char* path) {
  constexpr const char* call = "baracuda_nccl_load";
  if (path == nullptr || *path == '\0') {
    return fail(BARACUDA_INVALID_ARGUMENT, call, "path: got none, must be the path of a library");
  }
  const std::lock_guard<std::mutex> lock(binding_mutex);
  if (const Binding* present = bound.load()) {
    if (present->path == path) return BARACUDA_OK;
    return fail(BARACUDA_INVALID_ARGUMENT, call,
                "path: got %.120s, must be %.120s, which this process has loaded already", path,
                present->path.c_str());
  }
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return fail(BARACUDA_UNAVAILABLE, call, "%s", dlerror());
  Binding* binding = new Binding{path, {}};
  if (const char* missing = bind_all(library, binding->api)) {
    delete binding;
    return fail(BARACUDA_UNAVAILABLE, call, "%.200s has no function %s", path, missing);
  }
  bound.store(binding);
  return BARACUDA_OK;
}

}  // namespace

const NcclApi* nccl_api() {
  const Binding* binding = bound.load(std::memory_order_acquire);
  return binding != nullptr ? &binding->api : nullptr;
}

const NcclApi* require_nccl(const char* call) {
  const NcclApi* api = nccl_api();
  if (api == nullptr) {
    fail(BARACUDA_UNAVAILABLE, call, "no NCCL is loaded: call baracuda_nccl_load first");
  }
  return api;
}

int32_t require_nccl_function(bool present, const char* name, const char* since) {
  if (present) return BARACUDA_OK;
  int version = 0;
  nccl_api()->get_version(&version);
  // NCCL 2.8 and older give 2804 for 2.8.4; later ones give 21805 for 2.18.5.
  const int major = version < 10000 ? version / 1000 : version / 10000;
  const int minor = version < 10000 ? version / 100 % 10 : version / 100 % 100;
  return fail(BARACUDA_UNAVAILABLE, name, "NCCL: got %d.%d.%d (%.120s), must be %s or later",
              major, minor, version % 100, baracuda_nccl_path(), since);
}

int32_t check_nccl(int result, const char* call) {
  if (result == kNcclSuccess) return BARACUDA_OK;
  const NcclApi& api = *nccl_api();
  const char* what = api.get_error_string(result);
  const char* details = api.get_last_error != nullptr ? api.get_last_error(nullptr) : nullptr;
  const bool has_details = details != nullptr && *details != '\0';
  return fail_with_code(BARACUDA_NCCL_ERROR, result, call, "%s%s%s",
                        what != nullptr ? what : "unknown NCCL error", has_details ? ": " : "",
                        has_details ? details : "");
}

}  // namespace baracuda

extern "C" {

int32_t baracuda_nccl_load(const char* path) {
  try {
    return baracuda::load(path);
  } catch (const std::bad_alloc&) {
    return baracuda::fail(BARACUDA_OUT_OF_MEMORY, "baracuda_nccl_load", "no memory");
  }
}

const char* baracuda_nccl_path(void) {
  const baracuda::Binding* binding = baracuda::bound.load(std::memory_order_acquire);
  return binding != nullptr ? binding->path.c_str() : nullptr;
}

int32_t baracuda_nccl_version(int32_t* version) {
  *version = 0;
  const baracuda::NcclApi* api = baracuda::require_nccl("ncclGetVersion");
  if (api == nullptr) return BARACUDA_UNAVAILABLE;
  return baracuda::check_nccl(api->get_version(version), "ncclGetVersion");
}

int32_t baracuda_nccl_unique_id(void* id) {
  const baracuda::NcclApi* api = baracuda::require_nccl("ncclGetUniqueId");
  if (api == nullptr) return BARACUDA_UNAVAILABLE;
  return baracuda::check_nccl(api->get_unique_id(static_cast<baracuda::NcclUniqueId*>(id)),
                              "ncclGetUniqueId");
}

}  // extern "C"
