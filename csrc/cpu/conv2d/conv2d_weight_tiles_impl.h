// SPDX-License-Identifier: MIT
// The register tiles of the weight gradient, written once over Simd; instantiated by
// conv2d_ukernels_<isa>.cpp. Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/conv2d/conv2d_ukernels_impl.h"

namespace {

using fastconv::cpu::DotFamily;
using fastconv::cpu::DotTile;
using fastconv::cpu::DotTileFn;
using fastconv::cpu::WeightFamily;
using fastconv::cpu::WeightTile;
using fastconv::cpu::WeightTileFn;

// Makes the compiler forget what it knows of a value. GCC's partial redundancy elimination would
// otherwise carry loads of neighbouring taps over to the next pixel and spill them all; loading a
// broadcast anew is free.
inline void forget(int64_t& value) {
  __asm__("" : "+r"(value));
}

template <int KernelWidth, int Lines, int Vectors>
void weight_tile(const WeightTile& tile) {
  typename Simd::Reg acc[Lines * KernelWidth][Vectors];
  typename Simd::Reg bias[Vectors];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    bias[v] = Simd::zero();
#pragma GCC unroll 32
    for (int i = 0; i < Lines * KernelWidth; ++i) acc[i][v] = Simd::zero();
  }

  const float* lines[Lines];
#pragma GCC unroll 16
  for (int l = 0; l < Lines; ++l) lines[l] = tile.lines[l];
  const float* b = tile.b;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t end = i * tile.line_pitch + tile.width;
    for (int64_t j = i * tile.line_pitch; j < end; ++j, b += tile.b_pitch) {
      forget(j);
      typename Simd::Reg bv[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        bv[v] = Simd::load(b + v * kLanes);
        bias[v] = Simd::add(bias[v], bv[v]);
      }
#pragma GCC unroll 16
      for (int l = 0; l < Lines; ++l)
#pragma GCC unroll 8
        for (int q = 0; q < KernelWidth; ++q) {
          const auto a = Simd::set1(lines[l][j + q]);
#pragma GCC unroll 2
          for (int v = 0; v < Vectors; ++v)
            acc[l * KernelWidth + q][v] = Simd::fma(a, bv[v], acc[l * KernelWidth + q][v]);
        }
    }
  }

#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
#pragma GCC unroll 32
    for (int i = 0; i < Lines * KernelWidth; ++i) {
      float* c = tile.c + i * tile.c_pitch + v * kLanes;
      Simd::store(c, Simd::add(Simd::load(c), acc[i][v]));
    }
    if (tile.bias == nullptr) continue;
    float* c = tile.bias + v * kLanes;
    Simd::store(c, Simd::add(Simd::load(c), bias[v]));
  }
}

template <int KernelWidth, int Vectors, typename Sequence>
struct WeightTilesByLines;

template <int KernelWidth, int Vectors, int... LinesMinusOne>
struct WeightTilesByLines<KernelWidth, Vectors, std::integer_sequence<int, LinesMinusOne...>> {
  static constexpr WeightTileFn kTiles[] = {
      &weight_tile<KernelWidth, LinesMinusOne + 1, Vectors>...};
};

template <int KernelWidth, int MaxLines, int Vectors>
constexpr WeightFamily weight_family() {
  static_assert(MaxLines <= fastconv::cpu::kMaxWeightLines);
  using Tiles = WeightTilesByLines<KernelWidth, Vectors, std::make_integer_sequence<int, MaxLines>>;
  return {KernelWidth, Vectors, MaxLines, Tiles::kTiles};
}

template <int Taps, int Channels, bool Bias>
void dot_rows(const DotTile& tile) {
  typename Simd::Reg acc[Channels][Taps];
  typename Simd::Reg bias[Channels];
  const float* taps[Taps];
#pragma GCC unroll 8
  for (int o = 0; o < Channels; ++o) {
    bias[o] = Simd::zero();
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t) acc[o][t] = Simd::zero();
  }
#pragma GCC unroll 8
  for (int t = 0; t < Taps; ++t) taps[t] = tile.taps[t];
  // Both factors are masked at the end of a row: what follows may be infinite or no number.
  const int64_t width = tile.width, grad_channel = tile.grad_channel;
  const Simd::Mask all = Simd::mask_first(kLanes);
  const Simd::Mask tail = Simd::mask_first((width - 1) % kLanes + 1);
  const float* grad = tile.grad;
  const int64_t line_step = tile.line_pitch - width, grad_step = tile.grad_row - width;
  int64_t at = 0;
  for (int64_t i = tile.rows; i > 0; --i) {
    for (int64_t left = width; left > 0; left -= kLanes) {
      const Simd::Mask mask = left >= kLanes ? all : tail;
      typename Simd::Reg x[Taps];
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) {
        x[t] = Simd::load_masked(taps[t] + at, mask);
        Simd::keep(x[t]);
      }
#pragma GCC unroll 8
      for (int o = 0; o < Channels; ++o) {
        const auto go = Simd::load_masked(grad + o * grad_channel, mask);
        if constexpr (Bias) bias[o] = Simd::add(bias[o], go);
#pragma GCC unroll 8
        for (int t = 0; t < Taps; ++t) acc[o][t] = Simd::fma(go, x[t], acc[o][t]);
      }
      const int64_t step = left < kLanes ? left : kLanes;
      at += step;
      grad += step;
    }
    at += line_step;
    grad += grad_step;
  }

  const auto add_to = [](float* sum, typename Simd::Reg part) {
    Simd::store(sum, Simd::add(Simd::load(sum), part));
  };
#pragma GCC unroll 8
  for (int o = 0; o < Channels; ++o) {
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t) add_to(tile.sums + o * tile.sum_channel + t * kLanes, acc[o][t]);
    if constexpr (Bias) add_to(tile.bias + o * kLanes, bias[o]);
  }
}

template <int Taps, int Channels>
void dot_tile(const DotTile& tile) {
  if (tile.bias == nullptr) return dot_rows<Taps, Channels, false>(tile);
  dot_rows<Taps, Channels, true>(tile);
}

template <int MaxTaps, int MaxSums, typename Sequence>
struct DotTiles;

template <int MaxTaps, int MaxSums, int... Index>
struct DotTiles<MaxTaps, MaxSums, std::integer_sequence<int, Index...>> {
  template <int Taps, int Channels>
  static constexpr DotTileFn tile() {
    if constexpr (Taps * Channels <= MaxSums) return &dot_tile<Taps, Channels>;
    return nullptr;
  }
  static constexpr DotTileFn kTiles[] = {tile<Index % MaxTaps + 1, Index / MaxTaps + 1>()...};
};

template <int MaxTaps, int MaxChannels, int MaxSums>
constexpr DotFamily dot_family() {
  static_assert(MaxTaps <= fastconv::cpu::kMaxDotTaps);
  using Sequence = std::make_integer_sequence<int, MaxTaps * MaxChannels>;
  return {MaxTaps, MaxChannels, MaxSums, DotTiles<MaxTaps, MaxSums, Sequence>::kTiles};
}

void add_lanes(const float* sums, int64_t count, float* total) {
  for (int64_t i = 0; i < count; ++i) total[i] += Simd::reduce_add(Simd::load(sums + i * kLanes));
}

}  // namespace
