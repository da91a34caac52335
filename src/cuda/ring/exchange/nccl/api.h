// The part of NCCL's C ABI that the ring uses, bound at run time.
#pragma once

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

namespace baracuda {

struct NcclComm;  // opaque; an ncclComm_t points to it

enum NcclResult : int32_t { kNcclSuccess = 0, kNcclInProgress = 7 };

struct NcclUniqueId {
  char bytes[128];
};

constexpr int kNcclUint8 = 1;
constexpr int kNcclSplitNoColor = -1;

// ncclConfig_t of NCCL 2.18. Later versions know it by its size and version, and accept it.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21800;
  int blocking = 1;
  int cga_cluster_size = INT_MIN;  // INT_MIN: NCCL chooses
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

struct NcclApi {
  int (*get_version)(int* version);
  int (*get_unique_id)(NcclUniqueId* id);
  int (*comm_destroy)(NcclComm* comm);
  int (*comm_abort)(NcclComm* comm);
  int (*comm_get_async_error)(NcclComm* comm, int* error);
  int (*comm_count)(NcclComm* comm, int* count);
  int (*comm_user_rank)(NcclComm* comm, int* rank);
  int (*send)(const void* data, size_t count, int type, int peer, NcclComm* comm, void* stream);
  int (*recv)(void* data, size_t count, int type, int peer, NcclComm* comm, void* stream);
  int (*group_start)();
  int (*group_end)();
  const char* (*get_error_string)(int result);
  // The following are NULL if the loaded NCCL is too old.
  const char* (*get_last_error)(NcclComm* comm);  // ignores comm
  int (*comm_cu_device)(NcclComm* comm, int* device);
  int (*comm_init_rank_config)(NcclComm** comm, int count, NcclUniqueId id, int rank,
                               NcclConfig* config);  // since 2.14
  int (*comm_split)(NcclComm* comm, int color, int key, NcclComm** child,
                    NcclConfig* config);  // since 2.18
};

// The functions of the loaded NCCL; NULL until baracuda_nccl_load() has succeeded.
const NcclApi* nccl_api();

// nccl_api(), or NULL with a recorded BARACUDA_UNAVAILABLE.
const NcclApi* require_nccl(const char* call);
// present: whether the loaded NCCL has the function. Returns BARACUDA_OK if so. Else
// BARACUDA_UNAVAILABLE, with an error record that names the loaded version and `since`, the first
// version that has the function.
int32_t require_nccl_function(bool present, const char* name, const char* since);

// BARACUDA_OK, or BARACUDA_NCCL_ERROR with an error record that contains NCCL's own message.
int32_t check_nccl(int result, const char* call);

}  // namespace baracuda
