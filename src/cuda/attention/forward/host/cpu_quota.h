// How much CPU time the process's control group may use: containers limit that, not the CPUs.
#pragma once

namespace baracuda {
namespace host {

// In CPUs; 0 where there is no limit. membership: /proc/self/cgroup; root: /sys/fs/cgroup.
double cpu_quota(const char* membership, const char* root);

}  // namespace host
}  // namespace baracuda
