// Room for an exchange beside a launch that takes every multiprocessor.
//
// A launch and the exchange beside it become ready together, and the exchange's kernel is the later
// of the two to reach the device, by some microseconds. Blocks that fill the device by then keep it
// out until the first of them end: for a whole step, where a step is one wave of blocks.
#pragma once

#include <stdint.h>

#include "baracuda/ring.h"
#include "baracuda/status.h"

namespace baracuda {

// Whether a launch must be held up for as long as that takes. The launch leaves `margin`
// multiprocessors free if its blocks are resident; in_clusters: the exchange needs free ones that
// are neighbours, which those that a launch leaves are not.
inline bool needs_head_start(const baracuda_ring_grid& grid, int64_t multiprocessors,
                             int64_t margin, bool in_clusters) {
  const int64_t left = multiprocessors - margin;
  if (margin <= 0 || left <= 0 || grid.blocks <= 0) return false;
  // Blocks go to empty multiprocessors first: fewer of them leave whole ones.
  if (grid.blocks < left) return false;
  if (grid.blocks == left) return in_clusters;
  // Not where they would need another wave without these: the exchange then comes when the first
  // ends.
  const auto last_wave = [&grid](int64_t count) {
    return (grid.blocks - 1) / (count * grid.blocks_per_multiprocessor);
  };
  return last_wave(left) == last_wave(multiprocessors);
}

// Holds the stream up ahead of such a launch; the device is current.
inline int32_t give_head_start(const baracuda_stream_ops& ops, const baracuda_ring_grid& grid,
                               int64_t margin, bool in_clusters, void* stream) {
  int32_t multiprocessors = 0;
  const int32_t status = ops.multiprocessors(&multiprocessors);
  if (status != BARACUDA_OK) return status;
  return needs_head_start(grid, multiprocessors, margin, in_clusters) ? ops.pause(stream)
                                                                     : BARACUDA_OK;
}

}  // namespace baracuda
