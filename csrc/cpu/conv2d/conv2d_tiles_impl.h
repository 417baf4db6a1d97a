// SPDX-License-Identifier: MIT
// The register tiles of a strip, written once over Simd; instantiated by
// conv2d_ukernels_<isa>.cpp. Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>
#include <utility>

#include "common/summation.h"
#include "cpu/conv2d/conv2d_ukernels_impl.h"

namespace {

using fastconv::kMaxTerms;
using fastconv::cpu::ChannelFamily;
using fastconv::cpu::ChannelTile;
using fastconv::cpu::ChannelTileFn;
using fastconv::cpu::DirectFamily;
using fastconv::cpu::DirectTile;
using fastconv::cpu::DirectTileFn;

// Stores the accumulators of a tile, or adds them to what is there.
template <int Rows, int Vectors>
inline void finish_direct_tile(const DirectTile& tile, Simd::Reg (&acc)[Rows][Vectors], bool add) {
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const Simd::Mask mask = Simd::mask_first(tile.lanes[v]);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      float* c = tile.c[v] + i * tile.c_pitch;
      const auto x = add ? Simd::add(Simd::load_masked(c, mask), acc[i][v]) : acc[i][v];
      Simd::store_masked(c, x, mask);
    }
  }
}

template <int Rows, int Vectors>
void direct_tile(const DirectTile& tile) {
  typename Simd::Reg acc[Rows][Vectors];
  const bool init = tile.row_init != nullptr;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const auto start = init ? Simd::set1(tile.row_init[i]) : Simd::zero();
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[i][v] = start;
  }

  const float* b[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) b[v] = tile.b[v];
  const float* a = tile.a;
  for (int64_t first = 0; first < tile.depth; first += kMaxTerms) {
    const int64_t last = min_of(first + kMaxTerms, tile.depth);
    for (int64_t k = first; k < last; ++k, a += Rows) {
      const int64_t offset = tile.offsets[k];
      typename Simd::Reg bv[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) bv[v] = Simd::load(b[v] + offset);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const auto ai = Simd::set1(a[i]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
      }
    }
    finish_direct_tile<Rows, Vectors>(tile, acc, first > 0);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::zero();
  }
}

template <int Vectors, typename Sequence>
struct DirectTilesByRows;

template <int Vectors, int... RowsMinusOne>
struct DirectTilesByRows<Vectors, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr DirectTileFn kTiles[] = {&direct_tile<RowsMinusOne + 1, Vectors>...};
};

// Instantiates the kernels with 1 .. MaxRows rows and describes them.
template <int MaxRows, int Vectors>
constexpr DirectFamily direct_family() {
  static_assert(Vectors <= fastconv::cpu::kMaxDirectVectors);
  return {Vectors, DirectTilesByRows<Vectors, std::make_integer_sequence<int, MaxRows>>::kTiles};
}

// Stores the accumulators of a channel tile, or adds them to what is there.
template <int Columns, int Lines, int Vectors>
inline void finish_channel_tile(const ChannelTile& tile, Simd::Reg (&acc)[Lines * Columns][Vectors],
                                const Simd::Mask* mask, bool add) {
#pragma GCC unroll 8
  for (int l = 0; l < Lines; ++l)
#pragma GCC unroll 16
    for (int j = 0; j < Columns; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        float* c = tile.c[l] + j * tile.c_pixel + v * kLanes;
        auto x = acc[l * Columns + j][v];
        if (add) x = Simd::add(Simd::load_masked(c, mask[v]), x);
        Simd::store_masked(c, x, mask[v]);
      }
}

template <int Columns, int Lines, int Vectors>
void channel_tile(const ChannelTile& tile) {
  constexpr int kPixels = Lines * Columns;
  Simd::Mask mask[Vectors];
  typename Simd::Reg acc[kPixels][Vectors];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    mask[v] = Simd::mask_first(max_of(0, min_of(kLanes, tile.channels - v * kLanes)));
    const auto init =
        tile.bias == nullptr ? Simd::zero() : Simd::load_masked(tile.bias + v * kLanes, mask[v]);
#pragma GCC unroll 32
    for (int i = 0; i < kPixels; ++i) acc[i][v] = init;
  }

  const float* lines[Lines];
#pragma GCC unroll 8
  for (int l = 0; l < Lines; ++l) lines[l] = tile.lines[l];
  const float* b = tile.b;
  for (int64_t first = 0; first < tile.depth; first += kMaxTerms) {
    const int64_t last = min_of(first + kMaxTerms, tile.depth);
    for (int64_t k = first; k < last; ++k, b += tile.b_pitch) {
      const int64_t offset = tile.offsets[k];
      typename Simd::Reg bv[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) bv[v] = Simd::load(b + v * kLanes);
#pragma GCC unroll 8
      for (int l = 0; l < Lines; ++l)
#pragma GCC unroll 16
        for (int j = 0; j < Columns; ++j) {
          const auto a = Simd::set1(lines[l][offset + j]);
#pragma GCC unroll 2
          for (int v = 0; v < Vectors; ++v)
            acc[l * Columns + j][v] = Simd::fma(a, bv[v], acc[l * Columns + j][v]);
        }
    }
    finish_channel_tile<Columns, Lines, Vectors>(tile, acc, mask, first > 0);
#pragma GCC unroll 32
    for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::zero();
  }
}

template <int Columns, int Vectors, typename Sequence>
struct ChannelTilesByLines;

template <int Columns, int Vectors, int... LinesMinusOne>
struct ChannelTilesByLines<Columns, Vectors, std::integer_sequence<int, LinesMinusOne...>> {
  static constexpr ChannelTileFn kTiles[] = {&channel_tile<Columns, LinesMinusOne + 1, Vectors>...};
};

template <int Columns, int MaxLines, int Vectors>
constexpr ChannelFamily channel_family() {
  static_assert(MaxLines <= fastconv::cpu::kMaxChannelLines);
  using Tiles = ChannelTilesByLines<Columns, Vectors, std::make_integer_sequence<int, MaxLines>>;
  return {Columns, Vectors, MaxLines, Tiles::kTiles};
}

}  // namespace
