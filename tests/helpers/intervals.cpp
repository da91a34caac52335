// The intervals of visible keys and rows (attention/interval.h), compiled from their sources, for
// test_intervals.py.
#include "attention/interval.h"

using baracuda::ChunkPair;
using baracuda::Interval;
using baracuda::Mask;

namespace {

struct Problem {
  int64_t left, right, prefix, chunk;
  const int64_t* cu_seqlens;
  int64_t documents;
  baracuda_position_map q_map, k_map;
  int64_t query_len, key_len;

  Mask mask() const {
    Mask mask;
    mask.left = left;
    mask.right = right;
    mask.prefix = prefix;
    mask.chunk = chunk;
    mask.cu_seqlens = cu_seqlens;
    mask.documents = documents;
    return mask;
  }
  ChunkPair pair() const { return {mask(), q_map, query_len, k_map, key_len}; }
};

}  // namespace

extern "C" {

void keys_of_row(const Problem* p, int64_t row, Interval* out) { *out = p->pair().keys_of_row(row); }
void rows_of_key(const Problem* p, int64_t key, Interval* out) { *out = p->pair().rows_of_key(key); }
void keys_of_rows(const Problem* p, const Interval* rows, Interval* any, Interval* every) {
  *any = p->pair().keys_of_rows(*rows);
  *every = p->pair().keys_of_every_row(*rows);
}
void rows_of_keys(const Problem* p, const Interval* keys, Interval* any) {
  *any = p->pair().rows_of_keys(*keys);
}
int32_t is_live(const Problem* p, Interval* rows) {
  *rows = p->pair().live_rows();
  return p->pair().is_live();
}
void count_pairs(const Problem* p, int64_t* whole, int64_t* cut) {
  const baracuda::PairCount count =
      baracuda::count_pairs(p->mask(), p->q_map, p->query_len, p->k_map, p->key_len);
  *whole = count.whole;
  *cut = count.cut;
}

}  // extern "C"
