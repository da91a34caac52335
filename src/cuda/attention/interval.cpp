#include "attention/interval.h"

#include <algorithm>

namespace baracuda {
namespace {

constexpr int64_t lowest = INT64_MIN, highest = INT64_MAX;

int64_t add(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? (b < 0 ? lowest : highest) : sum;
}

// The positions of the document that contains a position; empty if there is none.
Interval document_at(const Mask& mask, int64_t position) {
  const int64_t* const ends = mask.cu_seqlens + 1;
  const int64_t* const end = std::upper_bound(ends, ends + mask.documents, position);
  if (end == ends + mask.documents) return {end[-1], end[-1]};
  const int64_t start = end[-1];
  return position < start ? Interval{start, start} : Interval{start, *end};
}

Interval chunk_at(const Mask& mask, int64_t position) {
  const int64_t inside = (position % mask.chunk + mask.chunk) % mask.chunk;
  return {position - inside, add(position - inside, mask.chunk)};
}

Interval within(Interval a, Interval b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

// The number of a shard's rows before a position, which is the index of the first later row.
int64_t rows_before(const baracuda_position_map& map, int64_t length, int64_t position) {
  if (position == lowest) return 0;
  // All positions are below 2^62 (problem.cpp). A window may end behind it, where a difference from
  // a position need not fit in 63 bits.
  constexpr int64_t limit = int64_t{1} << 62;
  return position >= limit ? length : visible_keys(map, length, position - 1);
}

Interval local(const baracuda_position_map& map, int64_t length, Interval positions) {
  const int64_t begin = rows_before(map, length, positions.begin);
  return {begin, std::max(begin, rows_before(map, length, positions.end))};
}

}  // namespace

Mask mask_of(const baracuda_attention_step_params& p) {
  Mask mask;
  if (p.window_left > 0) mask.left = p.window_left - 1;
  if (p.window_right > 0) mask.right = p.window_right;
  if ((p.flags & BARACUDA_STEP_CAUSAL) != 0) mask.right = 0;
  return mask;
}

Interval key_positions(const Mask& mask, int64_t row_position) {
  Interval seen{lowest, highest};
  if (mask.left != Mask::unlimited) seen.begin = add(row_position, -mask.left);
  if (mask.right != Mask::unlimited)
    seen.end = std::max(add(add(row_position, mask.right), 1), mask.prefix);
  if (mask.chunk > 0) seen = within(seen, chunk_at(mask, row_position));
  if (mask.cu_seqlens != nullptr) seen = within(seen, document_at(mask, row_position));
  return seen;
}

Interval row_positions(const Mask& mask, int64_t key_position) {
  Interval seeing{lowest, highest};
  if (mask.right != Mask::unlimited && key_position >= mask.prefix)
    seeing.begin = add(key_position, -mask.right);
  if (mask.left != Mask::unlimited) seeing.end = add(add(key_position, mask.left), 1);
  if (mask.chunk > 0) seeing = within(seeing, chunk_at(mask, key_position));
  if (mask.cu_seqlens != nullptr) {
    const Interval document = document_at(mask, key_position);
    // No row sees a key outside of all documents. The empty interval is before all rows or after
    // them.
    if (document.empty() && key_position < document.begin) return {lowest, lowest};
    if (document.empty()) return {highest, highest};
    seeing = within(seeing, document);
  }
  return seeing;
}

Interval ChunkPair::keys_of_row(int64_t row) const {
  return local(k_map_, key_len_, key_positions(mask_, position(q_map_, row)));
}

Interval ChunkPair::rows_of_key(int64_t key) const {
  return local(q_map_, query_len_, row_positions(mask_, position(k_map_, key)));
}

Interval ChunkPair::keys_of_rows(Interval rows) const {
  return {keys_of_row(rows.begin).begin, keys_of_row(rows.end - 1).end};
}

Interval ChunkPair::rows_of_keys(Interval keys) const {
  return {rows_of_key(keys.begin).begin, rows_of_key(keys.end - 1).end};
}

Interval ChunkPair::keys_of_every_row(Interval rows) const {
  return {keys_of_row(rows.end - 1).begin, keys_of_row(rows.begin).end};
}

bool ChunkPair::is_live() const {
  if (query_len_ <= 0 || key_len_ <= 0) return false;
  const bool from_the_start =
      mask_.left == Mask::unlimited && mask_.chunk <= 0 && mask_.cu_seqlens == nullptr;
  if (!from_the_start) return next_live_row(0) < query_len_;
  // The last row sees every key that any row sees. A ring asks this in every step.
  const Interval seen = key_positions(mask_, position(q_map_, query_len_ - 1));
  return position(k_map_, 0) < seen.end;
}

Interval ChunkPair::live_rows() const {
  const int64_t first = next_live_row(0);
  return first < query_len_ ? Interval{first, last_live_row() + 1} : Interval{0, 0};
}

// The interval of a row that sees no key lies in a gap between keys. `next` is the first key after
// the gap. No row sees a key before the first row whose position may see `next`, so the search
// continues there.
int64_t ChunkPair::next_live_row(int64_t row) const {
  while (row < query_len_) {
    const Interval seen = key_positions(mask_, position(q_map_, row));
    const int64_t key = rows_before(k_map_, key_len_, seen.begin);
    if (key >= key_len_) break;
    const int64_t next = position(k_map_, key);
    if (next < seen.end) return row;
    row = std::max(row + 1, rows_before(q_map_, query_len_, row_positions(mask_, next).begin));
  }
  return query_len_;
}

int64_t ChunkPair::last_live_row() const {
  int64_t row = query_len_ - 1;
  while (row >= 0) {
    const Interval seen = key_positions(mask_, position(q_map_, row));
    const int64_t key = rows_before(k_map_, key_len_, seen.end) - 1;
    if (key < 0) break;
    const int64_t previous = position(k_map_, key);
    if (previous >= seen.begin) return row;
    const int64_t end = rows_before(q_map_, query_len_, row_positions(mask_, previous).end);
    row = std::min(row, end) - 1;
  }
  return row;
}

}  // namespace baracuda
