// SPDX-License-Identifier: MIT
// The one GEMM microkernel, a template over the tile, instantiated by gemm_ukernels_<isa>.cpp after
// it has included its simd_<isa>.h. Everything here has internal linkage on purpose: a shared
// inline function compiled with AVX-512 could otherwise be the copy the linker keeps for every
// caller.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/gemm/gemm.h"

namespace {

using fastconv::cpu::GemmFamily;
using fastconv::cpu::GemmTile;
using fastconv::cpu::GemmTileFn;
using fastconv::cpu::kPanelPitch;

enum class AForm { kPacked, kPanel };

template <int Rows, int Vectors, AForm Form>
void gemm_tile(const GemmTile& tile) {
  constexpr int kLanes = Simd::kLanes;
  constexpr int64_t kRowStep = Form == AForm::kPacked ? 1 : kPanelPitch;
  constexpr int64_t kDepthStep = Form == AForm::kPacked ? Rows : 1;

  Simd::Mask mask[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const int64_t left = tile.columns - v * kLanes;
    mask[v] = Simd::mask_first(left < 0 ? 0 : left > kLanes ? kLanes : left);
  }

  typename Simd::Reg acc[Rows][Vectors];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
    const bool init = tile.row_init != nullptr && !tile.accumulate;
    const auto start = init ? Simd::set1(tile.row_init[i]) : Simd::zero();
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[i][v] = start;
  }

  const float* a = tile.a;
  const float* b = tile.b;
  const int64_t b_pitch = tile.b_pitch;
  for (int64_t k = 0; k < tile.depth; ++k) {
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

  if (tile.accumulate) {
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v)
        acc[i][v] = Simd::add(Simd::load_masked(tile.c + i * tile.c_pitch + v * kLanes, mask[v]),
                              acc[i][v]);
  }
  if (tile.columns == Vectors * kLanes) {
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v)
        Simd::store(tile.c + i * tile.c_pitch + v * kLanes, acc[i][v]);
    return;
  }
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      Simd::store_masked(tile.c + i * tile.c_pitch + v * kLanes, acc[i][v], mask[v]);
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
