// Masks are intervals. Positions rise with the row in every layout, so under every mask here a row
// sees the keys [begin, end) of a chunk, and neither end falls from row to row. The first and last
// row of a tile therefore bound its keys, and the rows that see a key form an interval too.
//
// Host code asks here for rows, keys, tiles and chunks. The CUDA kernels use prefixes
// (attention/positions.h).
#pragma once

#include <stdint.h>

#include "attention/positions.h"
#include "baracuda/attention.h"

namespace baracuda {

struct Interval {
  int64_t begin;
  int64_t end;

  bool empty() const { return begin >= end; }
  int64_t size() const { return end > begin ? end - begin : 0; }
};

// A mask, as data. A row at position p sees the positions that all fields allow. The default allows
// all.
//
//   causal                 right 0
//   sliding window of W    left W - 1, right 0
//   two-sided window       left, right
//   chunked                right 0, chunk
//   prefix, then causal    right 0, prefix
//   packed documents       cu_seqlens, and right 0 where causal, and a window or none
struct Mask {
  static constexpr int64_t unlimited = INT64_MAX;

  int64_t left = unlimited;    // keys from p - left on
  int64_t right = unlimited;   // keys up to p + right, or
  int64_t prefix = INT64_MIN;  // up to prefix - 1 where that is more
  int64_t chunk = 0;           // > 0: keys of p's own chunk; chunks have this many positions
  // Keys of p's own document. Document d holds the positions [cu_seqlens[d], cu_seqlens[d + 1]);
  // the array has documents + 1 entries. Positions outside all documents see nothing and are not
  // seen.
  const int64_t* cu_seqlens = nullptr;
  int64_t documents = 0;
};

// The mask of a step.
Mask mask_of(const baracuda_attention_step_params& params);

// The positions that a row sees, and the positions of the rows that see a key.
Interval key_positions(const Mask& mask, int64_t row_position);
Interval row_positions(const Mask& mask, int64_t key_position);

// The rows of a shard against a chunk of keys.
class ChunkPair {
 public:
  ChunkPair(const Mask& mask, const baracuda_position_map& q_map, int64_t query_len,
            const baracuda_position_map& k_map, int64_t key_len)
      : mask_(mask), q_map_(q_map), k_map_(k_map), query_len_(query_len), key_len_(key_len) {}

  // Keys that a row sees, and rows that see a key.
  Interval keys_of_row(int64_t row) const;
  Interval rows_of_key(int64_t key) const;
  // For a tile of one or more rows (or keys): the keys that any row sees, or the rows that see any
  // key. Rows that see nothing may widen the result.
  Interval keys_of_rows(Interval rows) const;
  Interval rows_of_keys(Interval keys) const;
  // The keys that every row of the tile sees. A tile of keys inside needs no mask.
  Interval keys_of_every_row(Interval rows) const;

  // Whether any row sees any key.
  bool is_live() const;
  // The rows from the first that sees a key to the last that does.
  Interval live_rows() const;

 private:
  int64_t next_live_row(int64_t row) const;
  int64_t last_live_row() const;

  const Mask mask_;
  const baracuda_position_map q_map_, k_map_;
  const int64_t query_len_, key_len_;
};

// Numbers of visible pairs of a row and a key. A block is a run of rows and a run of keys; a shard
// has one or two runs of evenly spaced positions.
struct PairCount {
  int64_t whole;  // pairs in blocks that the mask does not cut
  int64_t cut;    // pairs in other blocks
};
PairCount count_pairs(const Mask& mask, const baracuda_position_map& q_map, int64_t query_len,
                      const baracuda_position_map& k_map, int64_t key_len);

}  // namespace baracuda
