// Which steps of a ring call compute anything, and the parameters of their launches.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"
#include "attention/positions.h"

namespace baracuda {

class LiveSteps {
 public:
  explicit LiveSteps(const baracuda_ring_call& call)
      : call_(call), world_size_(call.endpoint->transport.world_size) {}

  bool has_rows() const {
    return call_.step.batch > 0 && call_.step.heads > 0 && call_.step.query_len > 0;
  }

  // The last query row sees the most: a step is live if that row sees a key of the chunk.
  bool is_live(int32_t step) const {
    if (!has_rows() || call_.step.key_len <= 0) return false;
    if (!(call_.step.flags & BARACUDA_STEP_CAUSAL)) return true;
    const int64_t last_row = position(query_map(), call_.step.query_len - 1);
    return visible_keys(key_map(step), call_.step.key_len, last_row) > 0;
  }

  bool any_live(int32_t begin, int32_t end) const {
    for (int32_t step = begin; step < end; ++step) {
      if (is_live(step)) return true;
    }
    return false;
  }

  // False where the step launches nothing. Otherwise *params is what it launches, its K and V
  // still those of step 0.
  bool launch_params(int32_t step, baracuda_attention_step_params* params) const {
    if (!has_rows()) return false;
    const bool live = is_live(step);
    // Rows that see nothing in any step still get their y = 0 and lse = -inf, from one launch.
    if (!live && (step != 0 || any_live(1, world_size_))) return false;
    *params = call_.step;
    params->q_map = query_map();
    params->k_map = key_map(step);
    params->flags &= ~static_cast<uint32_t>(BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST);
    if (!live) {
      params->key_len = 0;
      params->flags |= BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
      return true;
    }
    if (!any_live(0, step)) params->flags |= BARACUDA_STEP_FIRST;
    if (!any_live(step + 1, world_size_)) params->flags |= BARACUDA_STEP_LAST;
    return true;
  }

 private:
  baracuda_position_map query_map() const {
    return baracuda_layout_map(call_.layout, call_.endpoint->transport.rank, world_size_,
                               call_.step.query_len);
  }
  baracuda_position_map key_map(int32_t step) const {
    return baracuda_layout_map(call_.layout, call_.hops[step].origin, world_size_,
                               call_.step.key_len);
  }

  const baracuda_ring_call& call_;
  const int32_t world_size_;
};

}  // namespace baracuda
