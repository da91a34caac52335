// The CPU time that the process's control group may use. Containers limit that, not the number of
// CPUs.
#pragma once

namespace baracuda {
namespace host {

// In CPUs; 0 without a limit. membership: /proc/self/cgroup; root: /sys/fs/cgroup.
double cpu_quota(const char* membership, const char* root);

}  // namespace host
}  // namespace baracuda
