// SPDX-License-Identifier: MIT
// The one GEMM microkernel, a template over the tile, instantiated by gemm_ukernels_<isa>.cpp after
// it has included its simd_<isa>.h. Everything here has internal linkage on purpose: a shared
// inline function compiled with AVX-512 could otherwise be the copy the linker keeps for every
// caller.
#pragma once

#include <cstdint>
#include <utility>

#include "common/summation.h"
#include "cpu/gemm/gemm.h"

namespace {

using fastconv::kMaxTerms;
using fastconv::cpu::GemmFamily;
using fastconv::cpu::GemmTile;
using fastconv::cpu::GemmTileFn;
using fastconv::cpu::kPanelPitch;

enum class AForm { kPacked, kPanel };

// Stores the accumulators of a tile, or adds them to what is there.
template <int Rows, int Vectors>
inline void finish_tile(const GemmTile& tile, Simd::Reg (&acc)[Rows][Vectors], bool add) {
  constexpr int kLanes = Simd::kLanes;
  if (tile.columns == Vectors * kLanes) {
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        float* c = tile.c + i * tile.c_pitch + v * kLanes;
        Simd::store(c, add ? Simd::add(Simd::load(c), acc[i][v]) : acc[i][v]);
      }
    return;
  }
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const int64_t left = tile.columns - v * kLanes;
    const Simd::Mask mask = Simd::mask_first(left < 0 ? 0 : left > kLanes ? kLanes : left);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      float* c = tile.c + i * tile.c_pitch + v * kLanes;
      const auto x = add ? Simd::add(Simd::load_masked(c, mask), acc[i][v]) : acc[i][v];
      Simd::store_masked(c, x, mask);
    }
  }
}

template <int Rows, int Vectors, AForm Form>
void gemm_tile(const GemmTile& tile) {
  constexpr int kLanes = Simd::kLanes;
  constexpr int64_t kRowStep = Form == AForm::kPacked ? 1 : kPanelPitch;
  constexpr int64_t kDepthStep = Form == AForm::kPacked ? Rows : 1;

  typename Simd::Reg acc[Rows][Vectors];
  const bool init = tile.row_init != nullptr && !tile.accumulate;
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
    const auto start = init ? Simd::set1(tile.row_init[i]) : Simd::zero();
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[i][v] = start;
  }

  const float* a = tile.a;
  const float* b = tile.b;
  const int64_t b_pitch = tile.b_pitch;
  int64_t left = tile.depth;
  bool add = tile.accumulate;
  do {
    const int64_t terms = left < kMaxTerms ? left : kMaxTerms;
    for (int64_t k = 0; k < terms; ++k) {
      typename Simd::Reg bv[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) bv[v] = Simd::load(b + v * kLanes);
#pragma GCC unroll 32
      for (int i = 0; i < Rows; ++i) {
        const auto ai = Simd::set1(a[i * kRowStep]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
      }
      a += kDepthStep;
      b += b_pitch;
    }
    finish_tile<Rows, Vectors>(tile, acc, add);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::zero();
    add = true;
    left -= terms;
  } while (left > 0);
}

template <int Vectors, AForm Form, typename Sequence>
struct TilesByRows;

template <int Vectors, AForm Form, int... RowsMinusOne>
struct TilesByRows<Vectors, Form, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr GemmTileFn kTiles[] = {&gemm_tile<RowsMinusOne + 1, Vectors, Form>...};
};

// Instantiates the kernels with 1 .. MaxRows rows and describes them.
template <int MaxRows, int Vectors, AForm Form>
constexpr GemmFamily gemm_family() {
  using Tiles = TilesByRows<Vectors, Form, std::make_integer_sequence<int, MaxRows>>;
  return {Vectors, MaxRows, Tiles::kTiles};
}

}  // namespace
