// The fixed order of an ordered step's additions to dQ.
//
// Blocks take key tiles from an atomic counter. The key tiles of a head are taken in the order in
// which they add to a query tile, and each one waits only for its predecessor. So a block waits
// only for a key tile that a running block has taken earlier, and the step ends with any number of
// resident blocks. The order follows from the problem; it does not depend on the grid.
#pragma once

#include <stdint.h>

#include "attention/backward/turn_words.h"
#include "common/divisor.h"
#include "common/host_device.h"

namespace baracuda {

// A key tile is longer than another if more rows see it.

// True if the shortest key tiles of most heads are taken first: under a mask, without grouped
// heads.
inline bool draws_shortest_first(bool borders_vary, int64_t group) {
  return borders_vary && group == 1;
}

// The number of K/V heads in a section of an ordered step. The key tiles of a section are
// interleaved. A section should have many heads, because the blocks of one head wait for each other
// in a chain, but few enough that L2 holds Q, dO and the sums of dQ from one block to the next. The
// result is about the number that fits in L2, but at least `fewest` if there are that many heads.
// (Each family has its own `fewest`, found by measuring.) There are at least two sections if the
// last one has another order, in which blocks wait longer. The last section also gets the remaining
// heads.
inline int64_t choose_ordered_section(int64_t heads, int64_t group, int64_t query_len,
                                      int64_t head_dim, bool borders_vary, int64_t fewest) {
  constexpr int64_t l2_share = int64_t{16} << 20;
  const int64_t bytes = group * query_len * head_dim * 8;
  const int64_t fitting = bytes > 0 ? l2_share / bytes : heads;
  const int64_t wanted = fitting > fewest ? fitting : fewest;
  const int64_t limit = draws_shortest_first(borders_vary, group) && heads > 1 ? heads / 2 : heads;
  return heads / (wanted < limit ? heads / wanted : heads / limit);
}

// The binary logarithm of the number of sums of dQ that a query tile has in an ordered step. Key
// tile i of a head adds to the sum i modulo their number, and finish adds the sums in order. The
// key tiles of one sum start one after the other. If few heads share all blocks, the last blocks
// start late, by about two query tiles for each block before them. The number of sums is chosen so
// that this delay is at most 1 / share of a block's time, for a call with as many keys as rows on a
// device of about 128 blocks. Sums cost memory and time, so there are at most 2^most, and at least
// four key tiles a sum.
inline int choose_log2_sums(int64_t kv_heads, int64_t group, int64_t query_tiles, int share,
                            int most) {
  constexpr int64_t blocks = 128, long_enough = int64_t{1} << 20;
  const int64_t key_tiles = (query_tiles + 1) / 2;
  const int64_t places = (blocks + kv_heads - 1) / kv_heads;
  const int64_t of_a_head = places < key_tiles ? places : key_tiles;  // blocks of a head
  const int64_t rounds = kv_heads * key_tiles > blocks ? kv_heads * key_tiles / blocks : 1;
  const int64_t rows = group * query_tiles < long_enough ? group * query_tiles : long_enough;
  int log2 = 0;
  const auto waits = [&] { return 2 * ((of_a_head - 1) >> log2); };
  while (log2 < most && share * waits() > rounds * rows && key_tiles >> (log2 + 3) > 0) ++log2;
  return log2;
}

// The limits for choose_log2_sums() of a kernel with one sum for each query tile: share, and log2
// of the most sums without and with a mask. Other kernels' limits were found by measuring.
// (Under a mask blocks wait less, and L2 does not hold the sums as long.)
struct OneSum {
  static constexpr int share = 0, log2_most = 0, log2_most_masked = 0;
};

// The sum that a key tile of a head adds to, and the key tile's index in that sum.
BARACUDA_HD int sum_of_key_tile(int index, int log2_sums) { return index & (1 << log2_sums) - 1; }
BARACUDA_HD int place_in_sum(int index, int log2_sums) { return index >> log2_sums; }

struct DrawnTile {
  int head, index;  // the head of K and V, counted over all batches; its key tile
  bool rises;       // whether later key tiles of a head have higher indices
};

// The n-th of heads * key_tiles to be taken. Longest first: the first key tiles of a head, which
// under a mask are the longest, come first, so that blocks end together. Under a mask, blocks then
// iterate down from the last query tile, which sees every key that any row sees, and keep the
// distance with which they began. Shortest first, in all sections but the last and only under a
// mask without grouped heads: blocks iterate up, and the next key tile, which begins two query
// tiles earlier, follows without waiting. With grouped heads the distance would be two query tiles
// of every head of the group, which L2 would not hold.
BARACUDA_HD DrawnTile drawn_tile(int n, const Divisor& section, const Divisor& section_tiles,
                                 int heads, int key_tiles, bool shortest_first) {
  const int size = static_cast<int>(section.divisor);
  int at = section_tiles.quotient(n);
  if (at > 0 && heads - at * size < size) --at;
  const int first_head = at * size, left = heads - first_head;
  const bool is_last = left < 2 * size;
  const int inside = n - at * static_cast<int>(section_tiles.divisor);
  const int mixed = is_last ? left : size;
  const int place = mixed == size ? section.quotient(inside) : inside / mixed;
  const bool rises = !shortest_first || is_last;
  return {first_head + inside - place * mixed, rises ? place : key_tiles - 1 - place, rises};
}

// Without a mask, on sm80: the query tile with which the blocks of a head begin. The heads of a
// section begin at evenly spaced query tiles. Otherwise all heads would read the same rows of Q, dO
// and the sums, which often lie at multiples of a power of two and share the same sets of L2.
BARACUDA_HD int first_query_tile(int head, int mixed, int query_tiles) {
  return head % mixed * query_tiles / mixed;
}

// Values of a query tile's word in the scratch.
enum Turn : uint32_t {  // besides no_sums
  nobodys_turn = 1,   // every key tile of the step that adds here has added
  after_key_tile = 2  // plus KeyTileTurn::index of the key tile that has added
};

// The turn of a key tile at a query tile. Later key tiles are seen by fewer query tiles: the last
// ones.
struct KeyTileTurn {
  int index;       // the index among the key tiles of its sum
  int next_begin;  // the first query tile that sees the next key tile of its sum
  bool rises;

  // waits(): whether another key tile adds to query tile m earlier. awaited(): the word that it
  // leaves. left_at(): the word that this key tile leaves.
  BARACUDA_HD bool waits(int m) const { return rises ? index > 0 : m >= next_begin; }
  BARACUDA_HD uint32_t awaited() const { return after_key_tile + index + (rises ? -1 : 1); }
  BARACUDA_HD uint32_t left_at(int m) const {
    const bool is_last = rises ? m < next_begin : index == 0;
    return is_last ? uint32_t{nobodys_turn} : after_key_tile + static_cast<uint32_t>(index);
  }
};

}  // namespace baracuda
