// Makes devices current for a while, and the thread's own device current again afterwards.
#pragma once

#include <stdint.h>

#include "baracuda/exchange.h"
#include "baracuda/status.h"

namespace baracuda {

class DeviceScope {
 public:
  DeviceScope() = default;
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope() { leave(); }

  // Does nothing for device < 0 (the host).
  int32_t enter(const baracuda_stream_ops& ops, int32_t device) {
    if (device < 0) return BARACUDA_OK;
    if (ops_ == nullptr) {
      const int32_t status = ops.get_device(&previous_);
      if (status != BARACUDA_OK) return status;
      ops_ = &ops;
      current_ = previous_;
    }
    if (device == current_) return BARACUDA_OK;
    const int32_t status = ops.set_device(device);
    if (status == BARACUDA_OK) current_ = device;
    return status;
  }

  void leave() {
    if (ops_ != nullptr && current_ != previous_) ops_->set_device(previous_);
    ops_ = nullptr;
  }

 private:
  const baracuda_stream_ops* ops_ = nullptr;
  int32_t previous_ = -1;
  int32_t current_ = -1;
};

}  // namespace baracuda
