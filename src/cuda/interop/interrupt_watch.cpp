#include "interop/interrupt_watch.h"

#include <signal.h>

#include <chrono>
#include <mutex>

namespace baracuda {
namespace {

std::mutex mutex;
int32_t watches = 0;
bool installed = false;
struct sigaction before;  // the earlier handler; written while ours is not installed
int32_t came = 0;
int32_t in_run = 0;  // number of parts in their run
std::chrono::steady_clock::time_point stayed_at{};
// Parts whose run fails for another reason never leave it.
constexpr std::chrono::seconds kStay{2};

void handle(int number, siginfo_t* info, void* context) {
  __atomic_store_n(&came, 1, __ATOMIC_RELAXED);
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(number, info, context);
  } else {
    before.sa_handler(number);
  }
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == handle;
}

void install() {
  struct sigaction now;
  if (sigaction(SIGINT, nullptr, &now) != 0 || is_ours(now)) return;
  if ((now.sa_flags & SA_SIGINFO) == 0 &&
      (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)) {
    return;
  }
  before = now;
  struct sigaction ours = now;
  ours.sa_flags |= SA_SIGINFO;
  ours.sa_sigaction = handle;
  installed = sigaction(SIGINT, &ours, nullptr) == 0;
}

// Does nothing if the application has set another handler meanwhile.
void remove() {
  struct sigaction now;
  if (installed && sigaction(SIGINT, nullptr, &now) == 0 && is_ours(now)) {
    sigaction(SIGINT, &before, nullptr);
  }
  installed = false;
}

}  // namespace

InterruptWatch::InterruptWatch() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (watches++ > 0) return;
  if (in_run == 0 || std::chrono::steady_clock::now() - stayed_at > kStay) {
    in_run = 0;
    __atomic_store_n(&came, 0, __ATOMIC_RELAXED);
  }
  install();
}

InterruptWatch::~InterruptWatch() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (--watches == 0) remove();
}

const int32_t* InterruptWatch::flag() { return &came; }

void InterruptWatch::stay_in_run() {
  const std::lock_guard<std::mutex> lock(mutex);
  ++in_run;
  stayed_at = std::chrono::steady_clock::now();
}

void InterruptWatch::leave_run() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (in_run > 0) --in_run;
}

}  // namespace baracuda
