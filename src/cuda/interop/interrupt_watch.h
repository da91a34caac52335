// Ctrl-C where the application's threads wait in C++, and Python hears no signal.
#pragma once

#include <stdint.h>

namespace baracuda {

// While one lives, a SIGINT that somebody handles sets a flag, too. Whoever handles it still does.
//
// A run may have several parts (devices) that wait for each other. One that the flag has ended may
// leave the run with leave_run() only after it has done what the others wait for; until then the
// flag stays.
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

  // Not 0 once it came, until no watch lives and no part that it has ended is still in its run.
  static const int32_t* flag();
  static void stay_in_run();
  static void leave_run();
};

}  // namespace baracuda
