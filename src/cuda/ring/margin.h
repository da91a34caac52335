// Decides whether a step's launch must be delayed, so that the kernel of the round that runs at the
// same time (rounds.h) gets its multiprocessors first. Such a delay is called a head start for the
// round.
//
// A launch and its round become ready together, but the kernel of the round (NCCL's) reaches the
// device some microseconds later. If the launch has filled every multiprocessor by then, the
// round's kernel waits until the first blocks end. If the launch is one wave (as many blocks as fit
// on the multiprocessors at once), it waits for the whole launch.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace baracuda {

// True if the launch must be delayed. margin: the number of multiprocessors that the round takes. A
// persistent kernel leaves these free, because it has one block for each of the other
// multiprocessors (grid.blocks == left). in_clusters: the round's kernel has clusters of blocks.
// All blocks of a cluster need free multiprocessors in one GPC (a group of multiprocessors). The
// multiprocessors that the launch leaves free may lie in several GPCs, so a cluster may not fit
// even if enough are free.
inline bool needs_head_start(const baracuda_ring_grid& grid, int64_t multiprocessors,
                             int64_t margin, bool in_clusters) {
  const int64_t left = multiprocessors - margin;
  if (margin <= 0 || left <= 0 || grid.blocks <= 0) return false;
  // Blocks are placed on empty multiprocessors first, so with fewer blocks than `left`, more than
  // `margin` multiprocessors stay empty.
  if (grid.blocks < left) return false;
  if (grid.blocks == left) return in_clusters;
  // If the launch takes one wave more without the multiprocessors of the round, it is not delayed.
  // The round then starts when the first wave ends.
  const auto last_wave = [&grid](int64_t count) {
    return (grid.blocks - 1) / (count * grid.blocks_per_multiprocessor);
  };
  return last_wave(left) == last_wave(multiprocessors);
}

// Delays the stream if the launch that comes next must be delayed. The rank's device must be
// current.
inline int32_t give_head_start(const baracuda_stream_ops& ops, const baracuda_ring_grid& grid,
                               int64_t margin, bool in_clusters, void* stream) {
  int32_t multiprocessors = 0;
  const int32_t status = ops.multiprocessors(&multiprocessors);
  if (status != BARACUDA_OK) return status;
  return needs_head_start(grid, multiprocessors, margin, in_clusters) ? ops.pause(stream)
                                                                     : BARACUDA_OK;
}

}  // namespace baracuda
