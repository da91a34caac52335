// Which steps of a ring are live, and the parameters of the current step.
#pragma once

#include <stdint.h>

#include "attention/interval.h"
#include "baracuda/attention_ring.h"

namespace baracuda {

class LiveSteps {
 public:
  LiveSteps(const baracuda_attention_step_params& step, int32_t layout,
            const baracuda_ring_step& at)
      : step_(step),
        layout_(layout),
        at_(at),
        mask_(mask_of(step)),
        q_map_(baracuda_layout_map(layout, at.rank, at.world_size, step.query_len)) {}

  bool has_rows() const { return step_.batch > 0 && step_.heads > 0 && step_.query_len > 0; }

  // A step is live if some row sees a key of its chunk.
  bool is_live(int32_t step) const {
    return has_rows() &&
           ChunkPair(mask_, q_map_, step_.query_len, key_map(step), step_.key_len).is_live();
  }
  bool is_any_live(int32_t begin = 0) const { return is_any_live(begin, at_.world_size); }

  // The parameters of the current step: its chunk of K and V (the call's first payload), the
  // positions, the margin, and FIRST and LAST among the live steps.
  baracuda_attention_step_params at_hand() const {
    baracuda_attention_step_params params = step_;
    params.q_map = q_map_;
    params.k_map = key_map(at_.step);
    params.k = at_.chunk[0][0];
    params.v = at_.chunk[0][1];
    params.sm_margin = at_.sm_margin;
    params.flags &= ~(uint32_t{BARACUDA_STEP_FIRST} | BARACUDA_STEP_LAST | BARACUDA_STEP_FOLLOWS);
    if (!is_any_live(0, at_.step)) params.flags |= BARACUDA_STEP_FIRST;
    if (!is_any_live(at_.step + 1)) params.flags |= BARACUDA_STEP_LAST;
    return params;
  }

 private:
  bool is_any_live(int32_t begin, int32_t end) const {
    for (int32_t step = begin; step < end; ++step) {
      if (is_live(step)) return true;
    }
    return false;
  }
  baracuda_position_map key_map(int32_t step) const {
    return baracuda_layout_map(layout_, at_.hops[step].origin, at_.world_size, step_.key_len);
  }

  const baracuda_attention_step_params& step_;
  const int32_t layout_;
  const baracuda_ring_step& at_;
  const Mask mask_;
  const baracuda_position_map q_map_;
};

// Checks a program's problem before anything is sent. BARACUDA_OK, or a recorded failure.
int32_t check_ring_step(const char* call, const baracuda_attention_step_params& step,
                        int32_t layout, int32_t world_size);

}  // namespace baracuda
