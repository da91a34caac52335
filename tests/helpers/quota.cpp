// The CPU quota of control groups whose files a test has written.
#include "attention/forward/host/cpu_quota.h"

extern "C" double quota(const char* membership, const char* root) {
  return baracuda::host::cpu_quota(membership, root);
}
