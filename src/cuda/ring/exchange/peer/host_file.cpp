#include "ring/exchange/peer/host_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace baracuda {
namespace {

constexpr size_t kHeaderBytes = 4096;
static_assert(sizeof(PeerFileHeader) <= kHeaderBytes, "the header has a page");

// An open-file-description lock (F_OFD_SETLK); each rank has one byte of the file. The kernel
// releases it when the process ends, in whatever way.
struct flock lock_of(int32_t rank, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

}  // namespace

bool random_bytes(char bytes[16]) {
  return getrandom(bytes, 16, 0) == 16;
}

PeerHostFile::~PeerHostFile() {
  unlink();
  if (data_ != nullptr) munmap(data_, bytes_);
  if (file_ >= 0) close(file_);
}

bool PeerHostFile::create(const char nonce[16], int32_t world_size) {
  return map(nonce, world_size, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW);
}

bool PeerHostFile::open(const char nonce[16], int32_t world_size) {
  if (!map(nonce, world_size, O_RDWR | O_CLOEXEC | O_NOFOLLOW)) return false;
  name_[0] = '\0';  // the rank that created the file removes it
  return std::memcmp(header().nonce, nonce, 16) == 0;
}

bool PeerHostFile::map(const char nonce[16], int32_t world_size, int flags) {
  char* end = name_ + std::snprintf(name_, sizeof(name_), "/dev/shm/baracuda-");
  for (int i = 0; i < 16; ++i) {
    end += std::snprintf(end, 3, "%02x", static_cast<unsigned char>(nonce[i]));
  }
  world_size_ = world_size;
  const size_t ranks = static_cast<size_t>(world_size);
  bytes_ = kHeaderBytes + ranks * (sizeof(PeerHopWords) + sizeof(PeerRunNotes));
  file_ = ::open(name_, flags, 0600);
  const bool makes = (flags & O_CREAT) != 0;
  if (file_ < 0 || !makes) {
    const bool opened = file_ >= 0;
    if (!opened) name_[0] = '\0';
    struct stat status {};
    if (!opened || fstat(file_, &status) != 0 || status.st_size != static_cast<off_t>(bytes_) ||
        status.st_uid != geteuid()) {
      return false;
    }
  } else if (posix_fallocate(file_, 0, static_cast<off_t>(bytes_)) != 0) {
    // /dev/shm is full. Without posix_fallocate(), the first write to the mapping would raise
    // SIGBUS.
    return false;
  }
  void* const found =
      mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, 0);
  if (found == MAP_FAILED) return false;
  data_ = found;
  if (makes) std::memcpy(header().nonce, nonce, 16);
  return true;
}

void PeerHostFile::unlink() {
  if (name_[0] != '\0') ::unlink(name_);
  name_[0] = '\0';
}

PeerHopWords& PeerHostFile::hop(int32_t receiver) const {
  return reinterpret_cast<PeerHopWords*>(static_cast<char*>(data_) + kHeaderBytes)[receiver];
}

PeerRunNotes& PeerHostFile::notes(int32_t rank) const {
  return reinterpret_cast<PeerRunNotes*>(static_cast<char*>(data_) + kHeaderBytes +
                                         static_cast<size_t>(world_size_) *
                                             sizeof(PeerHopWords))[rank];
}

bool PeerHostFile::hold(int32_t rank) {
  struct flock lock = lock_of(rank, F_WRLCK);
  return fcntl(file_, F_OFD_SETLK, &lock) == 0;
}

void PeerHostFile::let_go(int32_t rank) {
  struct flock lock = lock_of(rank, F_UNLCK);
  if (file_ >= 0) fcntl(file_, F_OFD_SETLK, &lock);
}

bool PeerHostFile::is_held(int32_t rank) const {
  struct flock lock = lock_of(rank, F_WRLCK);
  return fcntl(file_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

}  // namespace baracuda
