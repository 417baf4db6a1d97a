// SPDX-License-Identifier: MIT
// The kernels of the fully connected layers, written once over Simd; instantiated by
// mlp_ukernels_<isa>.cpp. Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>
#include <utility>

#include "common/summation.h"
#include "cpu/mlp/mlp_ukernels.h"

namespace {

using fastconv::kMaxTerms;
using fastconv::cpu::Activate;
using fastconv::cpu::ColumnSums;
using fastconv::cpu::MatrixTile;
using fastconv::cpu::MatrixTileFn;
using fastconv::cpu::MlpKernels;
using fastconv::cpu::ScaleByDerivative;
using fastconv::cpu::Transpose;
using fastconv::cpu::VectorProduct;

constexpr int64_t kLanes = Simd::kLanes;
constexpr int kVectors = 2;
// Accumulators and one operand vector each fit the registers: 12 x 2 + 2 of 32, or 6 x 2 + 2 of 16.
constexpr int kMaxRows = kLanes == 16 ? 12 : 6;

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline Simd::Mask lanes_from(int64_t first, int64_t count) {
  const int64_t left = count - first;
  return Simd::mask_first(left < 0 ? 0 : min_of(left, kLanes));
}

template <bool Whole>
inline Simd::Reg load_part(const float* p, Simd::Mask mask) {
  if constexpr (Whole) return Simd::load(p);
  return Simd::load_masked(p, mask);
}

template <int Rows, bool Whole>
void matrix_tile(const MatrixTile& tile) {
  Simd::Mask mask[kVectors];
  Simd::Reg acc[Rows][kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) mask[v] = lanes_from(v * kLanes, tile.columns);
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) {
    const auto init = tile.row_init == nullptr ? Simd::zero() : Simd::set1(tile.row_init[i]);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[i][v] = init;
  }
  // Three rows share a pointer: x86 addresses p, p + s and p + 2 s without further arithmetic.
  constexpr int kPointers = (Rows + 2) / 3;
  const int64_t row = tile.a_row, depth_step = tile.a_depth;
  const float* a[kPointers];
#pragma GCC unroll 4
  for (int p = 0; p < kPointers; ++p) a[p] = tile.a + 3 * p * row;
  const float* b = tile.b;
  bool add = tile.accumulate;
  for (int64_t left = tile.depth; left > 0; left -= kMaxTerms) {
    for (int64_t k = min_of(left, kMaxTerms); k > 0; --k, b += tile.b_pitch) {
      Simd::Reg bv[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) bv[v] = load_part<Whole>(b + v * kLanes, mask[v]);
#pragma GCC unroll 12
      for (int i = 0; i < Rows; ++i) {
        const auto ai = Simd::set1(a[i / 3][i % 3 * row]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPointers; ++p) a[p] += depth_step;
    }
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        float* c = tile.c + i * tile.c_pitch + v * kLanes;
        if (add) acc[i][v] = Simd::add(load_part<Whole>(c, mask[v]), acc[i][v]);
        if constexpr (Whole) {
          Simd::store(c, acc[i][v]);
        } else {
          Simd::store_masked(c, acc[i][v], mask[v]);
        }
        acc[i][v] = Simd::zero();
      }
    add = true;
  }
}

// Rows of weights times one vector; eight accumulators hide the latency of the additions.
template <int Rows>
inline void dot_rows(const VectorProduct& task, int64_t first) {
  constexpr int kParts = 8 / Rows;
  Simd::Reg acc[Rows][kParts];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) acc[i][p] = Simd::zero();
  const float* w = task.weight + first * task.depth;
  int64_t k = 0;
  for (; k + kParts * kLanes <= task.depth; k += kParts * kLanes)
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
      const auto x = Simd::load(task.x + k + p * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i)
        acc[i][p] = Simd::fma(Simd::load(w + i * task.depth + k + p * kLanes), x, acc[i][p]);
    }
  for (; k < task.depth; k += kLanes) {
    const auto mask = lanes_from(k, task.depth);
    const auto x = Simd::load_masked(task.x + k, mask);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i)
      acc[i][0] = Simd::fma(Simd::load_masked(w + i * task.depth + k, mask), x, acc[i][0]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
    auto sum = acc[i][0];
#pragma GCC unroll 8
    for (int p = 1; p < kParts; ++p) sum = Simd::add(sum, acc[i][p]);
    const float init = task.init == nullptr ? 0.0f : task.init[first + i];
    task.out[first + i] = Simd::reduce_add(sum) + init;
  }
}

template <typename Act>
void activate(const Activate& task) {
  const auto slope = Simd::set1(task.slope);
  for (int64_t i = 0; i < task.count; i += kLanes) {
    const auto mask = lanes_from(i, task.count);
    Simd::store_masked(task.x + i, Act::value(Simd::load_masked(task.x + i, mask), slope), mask);
  }
}

template <typename Act>
void vector_product(const VectorProduct& task) {
  int64_t o = 0;
  for (; o + 4 <= task.rows; o += 4) dot_rows<4>(task, o);
  for (; o < task.rows; ++o) dot_rows<1>(task, o);
  activate<Act>({task.rows, task.slope, task.out});
}

template <typename Act>
void scale(const ScaleByDerivative& task) {
  const auto slope = Simd::set1(task.slope);
  for (int64_t i = 0; i < task.count; i += kLanes) {
    const auto mask = lanes_from(i, task.count);
    const auto g = Simd::load_masked(task.grad + i, mask);
    const auto y = Simd::load_masked(task.output + i, mask);
    Simd::store_masked(task.grad + i, Act::grad(g, y, slope), mask);
  }
}

void column_sums(const ColumnSums& task) {
  for (int64_t j = 0; j < task.columns; j += kLanes) {
    const auto mask = lanes_from(j, task.columns);
    auto total = Simd::zero();
    for (int64_t first = 0; first < task.rows; first += kMaxTerms) {
      auto sum = Simd::zero();
      const int64_t last = min_of(first + kMaxTerms, task.rows);
      for (int64_t i = first; i < last; ++i)
        sum = Simd::add(sum, Simd::load_masked(task.x + i * task.columns + j, mask));
      total = Simd::add(total, sum);
    }
    Simd::store_masked(task.sums + j, total, mask);
  }
}

void transpose(const Transpose& task) {
  for (int64_t i = 0; i < task.rows; i += kLanes) {
    const int64_t height = min_of(kLanes, task.rows - i);
    const auto write = Simd::mask_first(height);
    for (int64_t j = 0; j < task.columns; j += kLanes) {
      const int64_t width = min_of(kLanes, task.columns - j);
      const auto read = Simd::mask_first(width);
      Simd::Reg block[kLanes];
      // Rows past the last one repeat it: they are loaded but fall outside the write mask.
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l)
        block[l] = Simd::load_masked(
            task.source + (i + min_of(l, height - 1)) * task.source_pitch + j, read);
      Simd::transpose(block);
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l)
        if (l < width)
          Simd::store_masked(task.target + (j + l) * task.target_pitch + i, block[l], write);
    }
  }
}

template <bool Whole, typename Sequence>
struct TilesByRows;

template <bool Whole, int... RowsMinusOne>
struct TilesByRows<Whole, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr MatrixTileFn kTiles[] = {&matrix_tile<RowsMinusOne + 1, Whole>...};
};

constexpr MlpKernels make_kernels() {
  using Sequence = std::make_integer_sequence<int, kMaxRows>;
  return {kLanes,
          kVectors,
          kMaxRows,
          TilesByRows<true, Sequence>::kTiles,
          TilesByRows<false, Sequence>::kTiles,
          {&vector_product<NoActivation>, &vector_product<Relu>, &vector_product<LeakyRelu>,
           &vector_product<Sigmoid>, &vector_product<Tanh>},
          {&activate<NoActivation>, &activate<Relu>, &activate<LeakyRelu>, &activate<Sigmoid>,
           &activate<Tanh>},
          {&scale<NoActivation>, &scale<Relu>, &scale<LeakyRelu>, &scale<Sigmoid>, &scale<Tanh>},
          &column_sums,
          &transpose};
}

}  // namespace
