// A block of the sm80 backward step: its key tile, its warps' keys, and where operands lie.
#pragma once

#include "attention/backward/shift.cuh"
#include "attention/backward/sm80/args.cuh"
#include "attention/backward/sm80/config.h"
#include "attention/backward/sm80/turns.cuh"
#include "common/exponential.cuh"
#include "common/shared_access.cuh"
#include "common/uniform.cuh"

namespace baracuda::sm80::backward {

template <typename C>
constexpr int query_blocks = C::score_m / 8;  // blocks of eight queries in a warp's scores
template <typename C>
using Scores = float[C::key_blocks][query_blocks<C>][4];
template <typename C>
using Fragments = uint32_t[C::score_m / 16][C::key_blocks][4];  // P or dS as A operands
template <typename C>
using Sums = float[C::key_blocks][C::head_dim / 8][4];  // dK or dV of the warp's keys

template <typename C>
struct Block {
  __device__ __forceinline__ Block(const Args& args, char* memory)
      : args(args),
        shared(shared_address(memory)),
        turns(args, shared),
        tile(take_key_tile()),
        warp_index(uniform(threadIdx.x / 32)),
        warps_first_key(warp_index % C::group_warps * C::warp_keys) {}

  // Ordered steps get the key tile from a counter, other steps from the block's index.
  __device__ __forceinline__ KeyTile take_key_tile() const {
    if constexpr (C::ordered) turns.draw();
    return key_tile();
  }
  __device__ __forceinline__ KeyTile key_tile() const {
    if constexpr (C::ordered) {
      return {turns.batch(), turns.kv_head(), turns.key0()};
    } else {
      return key_tile_of(args, C::block_n);
    }
  }
  // In ordered steps these functions compute their value at each use, since no register is free to
  // keep it.
  static __device__ __forceinline__ int thread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }
  static __device__ __forceinline__ int lane() {
    if constexpr (C::ordered) return thread() % 32;
    return threadIdx.x % 32;
  }
  __device__ __forceinline__ int warp() const {
    if constexpr (C::ordered) return thread() / 32;
    return warp_index;
  }
  __device__ __forceinline__ int first_key() const {
    if constexpr (C::ordered) return warp() % C::group_warps * C::warp_keys;
    return warps_first_key;
  }
  __device__ __forceinline__ int batch() const {
    if constexpr (C::ordered) return turns.batch();
    return tile.batch;
  }

  // True in the group that computes S, P and dV, if Paired.
  __device__ __forceinline__ bool makes_dv() const { return warp_index < C::group_warps; }
  // The address of an array in shared memory. It has, for each key of the tile, the first row that
  // sees the key.
  __device__ __forceinline__ uint32_t rows_address() const { return shared + C::rows_offset; }

  // The shift (shift.cuh). It is kept in shared memory, since no register is free for it.
  __device__ __forceinline__ float shift() const {
    return C::shifts ? static_cast<float>(shared_load(shared + C::shift_offset)) : 0.0f;
  }
  // The factor that removes the shift.
  __device__ __forceinline__ float unshift() const {
    return C::shifts ? exp2_approx(-shift()) : 1.0f;
  }

  const Args& args;
  const uint32_t shared;
  const Turns<C> turns;
  const KeyTile tile;
  const int warp_index;
  const int warps_first_key;  // the index of the warp's first key in the tile
};

}  // namespace baracuda::sm80::backward
