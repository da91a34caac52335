#include "attention/forward/host/cpu_quota.h"

#include <cstdio>
#include <cstring>

namespace baracuda {
namespace host {
namespace {

constexpr int kPath = 4096;

double smaller(double a, double b) { return a == 0 || (b != 0 && b < a) ? b : a; }

// The quota of one group in version 2 ("max 100000", "150000 100000"); 0: none.
double quota_in(const char* folder) {
  char path[kPath + 16];
  std::snprintf(path, sizeof(path), "%s/cpu.max", folder);
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  double quota = 0;
  double period = 0;
  const bool limited = std::fscanf(file, "%lf %lf", &quota, &period) == 2;
  std::fclose(file);
  return limited && quota > 0 && period > 0 ? quota / period : 0;
}

double read_number(const char* folder, const char* name) {
  char path[kPath + 64];
  std::snprintf(path, sizeof(path), "%s/%s", folder, name);
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  double value = 0;
  if (std::fscanf(file, "%lf", &value) != 1) value = 0;
  std::fclose(file);
  return value;
}

// The quota of one group in version 1, where -1 means none; 0: none.
double old_quota_in(const char* folder) {
  const double quota = read_number(folder, "cpu.cfs_quota_us");
  const double period = read_number(folder, "cpu.cfs_period_us");
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The smallest quota of a group and of its parents up to the root: all of them hold.
double smallest(const char* root, const char* group, double (*of)(const char*)) {
  char folder[kPath];
  if (std::snprintf(folder, sizeof(folder), "%s%s", root, group) >= kPath) return 0;
  const size_t shortest = std::strlen(root);
  double least = 0;
  for (size_t length = std::strlen(folder);; ) {
    folder[length] = '\0';
    least = smaller(least, of(folder));
    if (length <= shortest) return least;
    while (length > shortest && folder[length - 1] != '/') --length;
    if (length > shortest) --length;
  }
}

// Whether "cpu" is among the comma-separated names.
bool names_cpu(const char* names, const char* end) {
  while (names < end) {
    const char* stop = names;
    while (stop < end && *stop != ',') ++stop;
    if (stop - names == 3 && std::strncmp(names, "cpu", 3) == 0) return true;
    names = stop + 1;
  }
  return false;
}

}  // namespace

double cpu_quota(const char* membership, const char* root) {
  std::FILE* file = std::fopen(membership, "re");
  if (file == nullptr) return 0;
  char line[kPath];
  char old_root[kPath];
  std::snprintf(old_root, sizeof(old_root), "%s/cpu", root);
  double least = 0;
  // hierarchy:controllers:path; version 2 has no controllers.
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    line[std::strcspn(line, "\n")] = '\0';
    const char* names = std::strchr(line, ':');
    const char* path = names == nullptr ? nullptr : std::strchr(names + 1, ':');
    if (path == nullptr) continue;
    const char* group = std::strcmp(path + 1, "/") == 0 ? "" : path + 1;
    if (path == names + 1) {
      least = smaller(least, smallest(root, group, quota_in));
    } else if (names_cpu(names + 1, path)) {
      least = smaller(least, smallest(old_root, group, old_quota_in));
    }
  }
  std::fclose(file);
  return least;
}

}  // namespace host
}  // namespace baracuda
