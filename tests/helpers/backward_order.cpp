// The order of an ordered backward step (attention/backward/order.h), compiled from its source, for
// test_backward_order.py.
#include "attention/backward/order.h"

using namespace baracuda;

extern "C" int64_t order_section(int64_t heads, int64_t group, int64_t query_len, int64_t head_dim,
                                 bool causal, int64_t fewest) {
  return choose_ordered_section(heads, group, query_len, head_dim, causal, fewest);
}

// The n-th key tile that is drawn: head, index, rises.
extern "C" void order_draw(int n, int section, int heads, int group, int key_tiles, bool causal,
                           int* out) {
  const DrawnTile tile =
      drawn_tile(n, make_divisor(section), make_divisor(int64_t{section} * key_tiles), heads,
                 key_tiles, draws_shortest_first(causal, group));
  out[0] = tile.head;
  out[1] = tile.index;
  out[2] = tile.rises;
}

// The turn of key tile `index` at query tile m, which has 1 << log2_sums sums: whether the key tile
// waits, the word that it waits for, the word that it leaves, and the sum that it adds to.
extern "C" void order_turn(int index, int log2_sums, int next_begin, bool rises, int m,
                           uint32_t* out) {
  const KeyTileTurn turn{place_in_sum(index, log2_sums), next_begin, rises};
  out[0] = turn.waits(m);
  out[1] = turn.awaited();
  out[2] = turn.left_at(m);
  out[3] = sum_of_key_tile(index, log2_sums);
}

extern "C" int order_log2_sums(int64_t kv_heads, int64_t group, int64_t query_tiles, int share,
                               int most) {
  return choose_log2_sums(kv_heads, group, query_tiles, share, most);
}

extern "C" int order_first_query_tile(int head, int mixed, int query_tiles) {
  return first_query_tile(head, mixed, query_tiles);
}
