// Ctrl-C while the application's threads wait in C++, where Python handles no signal.
#pragma once

#include <stdint.h>

namespace baracuda {

// While a watch exists, a SIGINT also sets a flag, if it has a handler. The handler still runs.
//
// A run may have several parts (devices) that wait for each other. A part that the flag has ended
// calls leave_run() after the work for which the others wait. The flag stays set until then, or for
// two seconds if a part never calls it.
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

  // Not 0 after a signal, until no watch exists and all parts that it has ended have left their
  // run.
  static const int32_t* flag();
  static void stay_in_run();
  static void leave_run();
};

}  // namespace baracuda
