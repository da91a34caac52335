// Which steps of a ring compute anything, and the parameters of their launches.
#pragma once

#include <stdint.h>

#include "attention/interval.h"
#include "baracuda/attention_ring.h"

namespace baracuda {

class LiveSteps {
 public:
  LiveSteps(const baracuda_attention_ring_problem& problem, const baracuda_ring_step& at)
      : problem_(problem),
        step_(problem.step),
        at_(at),
        mask_(mask_of(problem.step)),
        q_map_(baracuda_layout_map(problem.layout, at.rank, at.world_size, step_.query_len)) {}

  // A step is live if some row sees a key of its chunk.
  bool is_live(int32_t step) const {
    return has_rows() &&
           ChunkPair(mask_, q_map_, step_.query_len, key_map(step), step_.key_len).is_live();
  }

  // Rows that see nothing in any step still get their y = 0 and lse = -inf, from one launch.
  bool launches(int32_t step) const {
    return is_live(step) || (step == 0 && has_rows() && !any_live(1, at_.world_size));
  }

  // What the step at hand launches.
  baracuda_attention_step_params launch_params() const {
    baracuda_attention_step_params params = step_;
    params.q_map = q_map_;
    params.k_map = key_map(at_.step);
    params.k = at_.chunk[0][0];
    params.v = at_.chunk[0][1];
    params.sm_margin = at_.sm_margin;
    constexpr uint32_t whole = BARACUDA_STEP_FIRST | BARACUDA_STEP_LAST;
    params.flags &= ~(whole | BARACUDA_STEP_FOLLOWS);
    if (!is_live(at_.step)) {
      params.key_len = 0;
      params.flags |= whole;
      return params;
    }
    // After the first, only steps have been enqueued on the stream, and the chunk's arrival is an
    // event that it waits for.
    if (!any_live(0, at_.step)) {
      params.flags |= BARACUDA_STEP_FIRST;
    } else if (at_.follows != 0) {
      params.flags |= BARACUDA_STEP_FOLLOWS;
    }
    if (!any_live(at_.step + 1, at_.world_size)) params.flags |= BARACUDA_STEP_LAST;
    return params;
  }

 private:
  bool has_rows() const { return step_.batch > 0 && step_.heads > 0 && step_.query_len > 0; }
  bool any_live(int32_t begin, int32_t end) const {
    for (int32_t step = begin; step < end; ++step) {
      if (is_live(step)) return true;
    }
    return false;
  }
  baracuda_position_map key_map(int32_t step) const {
    return baracuda_layout_map(problem_.layout, at_.hops[step].origin, at_.world_size,
                               step_.key_len);
  }

  const baracuda_attention_ring_problem& problem_;
  const baracuda_attention_step_params& step_;
  const baracuda_ring_step& at_;
  const Mask mask_;
  const baracuda_position_map q_map_;
};

}  // namespace baracuda
