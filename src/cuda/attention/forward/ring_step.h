// The launch of a ring's step in the forward pass.
#pragma once

#include <stdint.h>

#include "attention/live_steps.h"
#include "baracuda/attention_ring.h"

namespace baracuda {

class ForwardRingStep {
 public:
  ForwardRingStep(const baracuda_attention_ring_problem& problem, const baracuda_ring_step& at)
      : at_(at), live_(problem.step, problem.layout, at) {}

  // If no row sees a key in any step, one launch still writes y = 0 and lse = -inf.
  bool launches() const {
    return live_.is_live(at_.step) ||
           (at_.step == 0 && live_.has_rows() && !live_.is_any_live(1));
  }

  baracuda_attention_step_params params() const {
    baracuda_attention_step_params params = live_.at_hand();
    if (!live_.is_live(at_.step)) params.key_len = 0;
    // Between two steps, the stream has nothing but waits for the arrival of chunks.
    if (at_.follows != 0 && (params.flags & BARACUDA_STEP_FIRST) == 0) {
      params.flags |= BARACUDA_STEP_FOLLOWS;
    }
    return params;
  }

 private:
  const baracuda_ring_step& at_;
  const LiveSteps live_;
};

}  // namespace baracuda
