// SPDX-License-Identifier: MIT
// The arithmetic of the tensor-core kernels: how a fragment of 32-bit words from shared memory is
// multiplied. A Math has
//   Element    what lies in memory
//   Operand    a fragment ready for mma; from words by prepare
//   mma        d += a b, 16 x 8 results over 32 bytes of the reduction
//   kFreshSums sums of each stage start at zero and are added to a second set: for the split
//              product, whose accuracy the rounding of the tensor core's own sums would spoil
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/common/types.cuh"

namespace fastconv::cuda {

template <typename ElementType, typename Tag>
struct HalfMath {
  using Element = ElementType;
  static constexpr bool kFreshSums = false;

  template <int Words>
  struct Operand {
    uint32_t words[Words];
  };

  template <int Words>
  static __device__ void prepare(Operand<Words>& operand, const uint32_t (&words)[Words]) {
#pragma unroll
    for (int i = 0; i < Words; ++i) operand.words[i] = words[i];
  }
  static __device__ void mma(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    mma_m16n8k16(d, a.words, b.words, Tag{});
  }
};

using BFloat16Math = HalfMath<__nv_bfloat16, Bf16>;
using Float16Math = HalfMath<__half, Half>;

struct Tf32Math {
  using Element = float;
  static constexpr bool kFreshSums = false;

  template <int Words>
  struct Operand {
    uint32_t words[Words];
  };

  template <int Words>
  static __device__ void prepare(Operand<Words>& operand, const uint32_t (&words)[Words]) {
#pragma unroll
    for (int i = 0; i < Words; ++i) operand.words[i] = to_tf32(__uint_as_float(words[i]));
  }
  static __device__ void mma(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    mma_m16n8k8_tf32(d, a.words, b.words);
  }
};

// x = high + low up to 2^-22 x. An infinity or NaN has no low part and takes part only in the
// product of the high ones, so that it does not meet a zero it never was multiplied with.
struct Tf32x3Math {
  using Element = float;
  static constexpr bool kFreshSums = true;

  template <int Words>
  struct Operand {
    uint32_t high[Words];
    uint32_t finite_high[Words];
    uint32_t low[Words];
  };

  template <int Words>
  static __device__ void prepare(Operand<Words>& operand, const uint32_t (&words)[Words]) {
#pragma unroll
    for (int i = 0; i < Words; ++i) {
      const float x = __uint_as_float(words[i]);
      const uint32_t high = to_tf32(x);
      const float rounded = __uint_as_float(high);
      const bool finite = fabsf(rounded) <= FLT_MAX;
      operand.high[i] = high;
      operand.finite_high[i] = finite ? high : 0u;
      operand.low[i] = finite ? to_tf32(x - rounded) : 0u;
    }
  }
  static __device__ void mma(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    mma_m16n8k8_tf32(d, a.low, b.finite_high);
    mma_m16n8k8_tf32(d, a.finite_high, b.low);
    mma_m16n8k8_tf32(d, a.high, b.high);
  }
};

// The results of one lane for a Tile of kRowFragments x kColumnFragments mma results.
template <class Tile>
using TileSums = float[Tile::kRowFragments][Tile::kColumnFragments][4];

template <class Tile>
__device__ void clear(TileSums<Tile>& sums) {
#pragma unroll
  for (int i = 0; i < Tile::kRowFragments; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kColumnFragments; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
}

// sums += what `multiply` adds to the sums it is given: fresh ones where the Math wants that.
template <class Math, class Tile, typename Multiply>
__device__ void add_product(TileSums<Tile>& sums, const Multiply& multiply) {
  if constexpr (Math::kFreshSums) {
    TileSums<Tile> fresh;
    clear<Tile>(fresh);
    multiply(fresh);
#pragma unroll
    for (int i = 0; i < Tile::kRowFragments; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kColumnFragments; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] += fresh[i][j][e];
  } else {
    multiply(sums);
  }
}

}  // namespace fastconv::cuda
