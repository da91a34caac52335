// Arguments of the sm90a backward kernel, and the scheduler of its key tiles.
#pragma once

#include <cuda.h>

#include "attention/backward/first_row.cuh"
#include "attention/positions.h"
#include "baracuda/element.h"
#include "common/divisor.h"

namespace baracuda::sm90::backward {

struct Args {
  CUtensorMap q, k, v, dy;
  const char* statistics;  // of every query tile, see statistics.cuh
  const float* norms;      // see shift.cuh
  // Sums of dQ / scale, in the order of the accumulators: [tile][column / 8][thread][4].
  float* dq;
  uint32_t* turns;  // the words of query tiles, see turn_words.h; null without words or rows
  void* dk;
  void* dv;
  baracuda_strides dk_strides, dv_strides;
  baracuda_position_map q_map, k_map;
  const baracuda_position_map* device_maps;
  // Divides by q_map.stride. Its divisor is 0 if the host does not know the stride (device_maps),
  // or if the stride is 2^31 or more.
  Divisor q_stride;
  Divisor kv_heads;
  Divisor tiles;    // key tiles of a head; the two of a pair count as one
  Divisor section;  // K/V heads whose key tiles are interleaved: choose_section(), or order.h
  Divisor section_tiles;  // key tiles of a section, for an ordered step
  int dq_sums, log2_sums;  // ordered steps: number of sums of dQ of a query tile
  int dq_tiles;            // ordered steps: query tiles of all heads
  int dq_words;            // ordered steps: number of first words, over all sums
  int heads, group;       // query heads; query heads of a key head
  int batch_kv_heads;
  int query_len, key_len;
  int query_tiles, key_tiles;
  int no_row;
  float scale, scale_log2;
  bool borders_vary;  // rows may see different keys, see problem.h
  bool shortest_first;  // ordered steps, see order.h
  bool gradients_f32;  // dk and dv are f32; else of the operands' type
};

struct KeyTile {
  int batch, kv_head, index;
  bool descends;
};

// A static persistent scheduler: blocks stay resident, and each has a fixed list of key tiles, one
// in each round. Under a mask the key tiles of a section are interleaved, longest first, and rounds
// alternate their direction, so that a block with a long tile in one round gets a short one in the
// next. Blocks begin a forward round together and end a backward round together, at the last query
// tile. So they iterate over the query tiles down in forward rounds and up in backward rounds,
// which keeps all blocks near the same query tiles in L2. The blocks of a cluster take adjacent key
// tiles together.
template <int Cluster>
class KeyTileScheduler {
 public:
  __device__ __forceinline__ bool next(const Args& args, KeyTile& tile) {
    const int grid = static_cast<int>(gridDim.x) / Cluster;
    const int block = static_cast<int>(blockIdx.x) / Cluster;
    const int section = static_cast<int>(args.section.divisor);
    while (first_head_ < args.batch_kv_heads) {
      const int left = args.batch_kv_heads - first_head_;
      const int heads = section < left ? section : left;
      if (done_ >= heads * args.key_tiles) {
        first_head_ += section;
        done_ = 0;
        continue;
      }
      const int n = done_ + (backwards_ ? grid - 1 - block : block);
      done_ += grid;
      tile.descends = args.borders_vary && !backwards_;
      if (args.borders_vary) backwards_ = !backwards_;
      if (n >= heads * args.key_tiles) continue;
      int head;
      if (args.borders_vary) {
        tile.index = heads == section ? args.section.quotient(n) : n / heads;
        head = first_head_ + n - tile.index * heads;
      } else {
        head = args.tiles.quotient(n);
        tile.index = n - head * args.key_tiles;
      }
      tile.batch = args.kv_heads.quotient(head);
      tile.kv_head = head - tile.batch * static_cast<int>(args.kv_heads.divisor);
      return true;
    }
    return false;
  }

 private:
  int first_head_ = 0;
  int done_ = 0;  // key tiles of the section that earlier rounds have taken
  bool backwards_ = false;
};

// The query tiles of a key tile, in order.
struct QueryTiles {
  int begin, step;

  __device__ __forceinline__ int at(int i) const { return begin + i * step; }
};

// Iterates over the query tiles of a key tile, in the order of for_each_query_tile().
template <bool Ordered>
struct QuerySequence {
  QueryTiles queries;
  int group, count;  // heads; query tiles of each
  int first;         // first query tile of the first head, counted over all heads
  int query_tiles;   // number of query tiles of a head
  int g = 0, i = 0;

  __device__ __forceinline__ bool more() const { return Ordered ? i < count : g < group; }
  __device__ __forceinline__ int tile() const { return queries.at(i); }
  __device__ __forceinline__ int tile_of_all() const { return first + g * query_tiles + tile(); }
  __device__ __forceinline__ void advance() {
    int& inner = Ordered ? g : i;
    int& outer = Ordered ? i : g;
    if (++inner < (Ordered ? group : count)) return;
    inner = 0;
    ++outer;
  }
};

// Calls f(head of the group, i) for each query tile i < count of each head. Unordered: one head
// after the other. Ordered: one query tile after the other, with all heads of each, so that blocks
// with fewer query tiles keep their distance behind others.
template <bool Ordered, typename F>
__device__ __forceinline__ void for_each_query_tile(int group, int count, F f) {
  const int outer = Ordered ? count : group, inner = Ordered ? group : count;
#pragma unroll 1
  for (int a = 0; a < outer; ++a)
#pragma unroll 1
    for (int b = 0; b < inner; ++b) f(Ordered ? b : a, Ordered ? a : b);
}

}  // namespace baracuda::sm90::backward
