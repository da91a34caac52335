// The CPU quota of control groups that a test makes.
#include "attention/forward/host/cpu_quota.h"

extern "C" double quota(const char* membership, const char* root) {
  return baracuda::host::cpu_quota(membership, root);
}
