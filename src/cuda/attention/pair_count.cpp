// Counts the visible pairs of rows and keys in closed form, since predictions are made for rings of
// any length. Between the edges of chunks and documents, each end of a row's interval either is
// constant or moves with the row. So the count over a run of rows is a few sums of clamped
// quotients.
#include <algorithm>

#include "attention/interval.h"

namespace baracuda {
namespace {

// Ends of windows, and differences of positions, may need more than 63 bits.
__extension__ using Wide = __int128;

// Rows at first, first + stride, ...
struct Run {
  Wide first;
  Wide stride;
  Wide count;
};

struct Runs {
  Run run[2];
  Runs(const baracuda_position_map& map, int64_t length) {
    const int64_t split = std::min(map.split, length);
    run[0] = {map.head, map.stride, split};
    run[1] = {map.tail, map.stride, length - split};
  }
};

// How an end of the interval continues from a row position on.
struct Course {
  Wide value;  // the end at that position
  bool moves;  // with the row position; else it is constant
  Wide until;  // holds for row positions before this one
};

// The least i >= 0 with start + step * i >= bound.
Wide first_reaching(Wide start, Wide step, Wide bound) {
  return start >= bound ? 0 : (bound - start + step - 1) / step;
}

// Sum of floor((start + step * i) / divisor) over 0 <= i < count; start >= 0.
Wide sum_of_quotients(Wide count, Wide divisor, Wide step, Wide start) {
  Wide sum = 0;
  while (count > 0) {
    sum += (count & 1 ? (count - 1) / 2 * count : count / 2 * (count - 1)) * (step / divisor) +
           count * (start / divisor);
    step %= divisor;
    start %= divisor;
    const Wide top = step * count + start;
    if (top < divisor) break;
    // The same lattice points, counted along the other axis.
    count = top / divisor;
    start = top % divisor;
    std::swap(divisor, step);
  }
  return sum;
}

// Counts, over `rows` rows that lie `stride` apart, the keys before the end of each row.
Wide sum_before(const Run& keys, const Course& end, Wide stride, Wide rows) {
  if (!end.moves && end.value == INT64_MIN) return 0;
  if (!end.moves && end.value == INT64_MAX) return rows * keys.count;
  // Distances from the first key: of the first row's end, and of the least end behind all keys.
  const Wide ahead = end.value - keys.first;
  const Wide all = (keys.count - 1) * keys.stride + 1;
  if (!end.moves) {
    if (ahead <= 0) return 0;
    return rows * (ahead >= all ? keys.count : (ahead - 1) / keys.stride + 1);
  }
  const Wide some = std::min(rows, first_reaching(ahead, stride, 1));
  const Wide full = std::min(rows, first_reaching(ahead, stride, all));
  return (rows - full) * keys.count + (full - some) +
         sum_of_quotients(full - some, keys.stride, stride, ahead + stride * some - 1);
}

class PairCounter {
 public:
  explicit PairCounter(const Mask& mask) : mask_(mask) {}

  Wide count(const Run& rows, const Run& keys) const {
    Wide pairs = 0;
    for (Wide done = 0; done < rows.count;) {
      const Wide at = rows.first + rows.stride * done;
      const Interval fence = fence_at(at);
      const Course begin = begin_at(at, fence), end = end_at(at, fence);
      const Wide until = std::min({begin.until, end.until, fence_end(at, fence)});
      const Wide here =
          until == INT64_MAX
              ? rows.count - done
              : std::min(rows.count - done, first_reaching(at, rows.stride, until));
      if (!fence.empty()) {
        pairs += sum_before(keys, end, rows.stride, here) -
                 sum_before(keys, begin, rows.stride, here);
      }
      done += here;
    }
    return pairs;
  }

 private:
  // The positions in the same chunk and document as a position. Empty outside of all documents.
  Interval fence_at(Wide at) const {
    Mask fences;
    fences.chunk = mask_.chunk;
    fences.cu_seqlens = mask_.cu_seqlens;
    fences.documents = mask_.documents;
    return key_positions(fences, at);
  }
  Wide fence_end(Wide at, const Interval& fence) const {
    if (!fence.empty()) return fence.end;
    // Outside of all documents: before the first, or behind the last.
    const int64_t start = mask_.cu_seqlens[0];
    return at < start ? start : INT64_MAX;
  }
  Course begin_at(Wide at, const Interval& fence) const {
    if (mask_.left == Mask::unlimited) return {fence.begin, false, INT64_MAX};
    const Wide moving = at - mask_.left;
    if (moving >= fence.begin) return {moving, true, INT64_MAX};
    return {fence.begin, false, Wide{fence.begin} + mask_.left};
  }
  Course end_at(Wide at, const Interval& fence) const {
    if (mask_.right == Mask::unlimited) return {fence.end, false, INT64_MAX};
    const Wide moving = at + mask_.right + 1;
    if (moving < mask_.prefix)
      return {std::min(mask_.prefix, fence.end), false, Wide{mask_.prefix} - mask_.right - 1};
    if (moving >= fence.end) return {fence.end, false, INT64_MAX};
    if (fence.end == INT64_MAX) return {moving, true, INT64_MAX};
    return {moving, true, Wide{fence.end} - mask_.right - 1};
  }

  const Mask& mask_;
};

}  // namespace

PairCount count_pairs(const Mask& mask, const baracuda_position_map& q_map, int64_t query_len,
                      const baracuda_position_map& k_map, int64_t key_len) {
  const PairCounter counter(mask);
  const Runs rows(q_map, query_len), keys(k_map, key_len);
  PairCount count{0, 0};
  for (const Run& some_rows : rows.run) {
    for (const Run& some_keys : keys.run) {
      if (some_rows.count == 0 || some_keys.count == 0) continue;
      const int64_t pairs = counter.count(some_rows, some_keys);
      (pairs == some_rows.count * some_keys.count ? count.whole : count.cut) += pairs;
    }
  }
  return count;
}

}  // namespace baracuda
