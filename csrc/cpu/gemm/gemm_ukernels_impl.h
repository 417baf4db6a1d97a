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
using fastconv::cpu::GemmColumnsFn;
using fastconv::cpu::GemmColumnSource;
using fastconv::cpu::GemmColumnsTile;
using fastconv::cpu::GemmCopyTileFn;
using fastconv::cpu::GemmFamily;
using fastconv::cpu::GemmPlaceFamily;
using fastconv::cpu::GemmRowsFn;
using fastconv::cpu::GemmRowsTile;
using fastconv::cpu::GemmRun;
using fastconv::cpu::GemmTile;
using fastconv::cpu::GemmTileFn;
using fastconv::cpu::kPanelPitch;

enum class AForm { kPacked, kPanel, kRows };

// Stores the accumulators of a tile, or adds them to what is there.
template <int Rows, int Vectors>
inline void finish_tile(const GemmTile& tile, Simd::Reg (&acc)[Rows][Vectors], bool add) {
  constexpr int kLanes = Simd::kLanes;
  const int64_t c_pitch = tile.c_pitch;
  float* c = tile.c;
  if (tile.columns == Vectors * kLanes) {
    // Hides from the compiler that the other path starts at the same address: it would compute all
    // row addresses before the branch and keep them, and the accumulators, out of registers.
    asm("" : "+r"(c));
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i, c += c_pitch)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        float* at = c + v * kLanes;
        Simd::store(at, add ? Simd::add(Simd::load(at), acc[i][v]) : acc[i][v]);
      }
    return;
  }
  Simd::Mask mask[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const int64_t left = tile.columns - v * kLanes;
    mask[v] = Simd::mask_first(left < 0 ? 0 : left > kLanes ? kLanes : left);
  }
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i, c += c_pitch)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      float* at = c + v * kLanes;
      const auto x = add ? Simd::add(Simd::load_masked(at, mask[v]), acc[i][v]) : acc[i][v];
      Simd::store_masked(at, x, mask[v]);
    }
}

// acc += A B over one k.
template <int Rows, int Vectors>
inline void step(const float* a, int64_t row_step, const float* b,
                 Simd::Reg (&acc)[Rows][Vectors]) {
  typename Simd::Reg bv[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) bv[v] = Simd::load(b + v * Simd::kLanes);
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
    const auto ai = Simd::set1(a[i * row_step]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
  }
}

// acc += A B over k and k + 1, which lie side by side in A, row i at a_row(i). A tile one vector
// wide would need a load for every multiply-add, more than a core can do; here one load and one
// shuffle serve two. With a = (A[i][k], A[i][k+1]) in every pair of lanes, the even lanes first
// take k and the odd ones k + 1, then the other way round.
template <class V, int Rows, class RowOfA>
inline void step_pair(RowOfA a_row, const float* b, int64_t b_pitch,
                      typename V::Reg (&acc)[Rows][1]) {
  const auto b0 = V::load(b), b1 = V::load(b + b_pitch);
  const auto straight = V::blend_odd(b0, b1), crossed = V::blend_odd(b1, b0);
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
    const auto pair = V::set_pair(a_row(i));
    acc[i][0] = V::fma(pair, straight, acc[i][0]);
    acc[i][0] = V::fma(V::swap_pairs(pair), crossed, acc[i][0]);
  }
}

template <int Rows, int Vectors, AForm Form>
void gemm_tile(const GemmTile& tile) {
  const int64_t row_step =
      Form == AForm::kPacked ? 1 : (Form == AForm::kPanel ? kPanelPitch : tile.a_pitch);
  constexpr int64_t kDepthStep = Form == AForm::kPacked ? Rows : 1;
  constexpr bool kPairs = Form == AForm::kPanel && Vectors == 1 && Simd::kLanes > 1;

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
    if constexpr (kPairs) {
      if (terms % 2 != 0) {
        step(a, row_step, b, acc);
        a += 1;
        b += b_pitch;
      }
      for (int64_t k = 1; k < terms; k += 2) {
        step_pair<Simd>([a](int i) { return a + i * kPanelPitch; }, b, b_pitch, acc);
        a += 2;
        b += 2 * b_pitch;
      }
    } else {
      for (int64_t k = 0; k < terms; ++k) {
        step(a, row_step, b, acc);
        a += kDepthStep;
        b += b_pitch;
      }
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

// The columns of B from one or two places per vector, copied on the way.
template <int Vectors, bool Whole>
struct CopiedColumns {
  static constexpr int kLanes = Simd::kLanes;

  explicit CopiedColumns(const GemmColumnSource& source) : pitch(source.pitch), copy(source.copy) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      low[v] = source.low[v];
      high[v] = source.high[v];
      low_mask[v] = Simd::mask_first(source.split[v]);
      high_mask[v] = Simd::mask_range(source.split[v], source.end[v]);
    }
  }

  // The next row of B.
  inline __attribute__((always_inline)) void load(typename Simd::Reg (&b)[Vectors]) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      if constexpr (Whole) {
        b[v] = Simd::load(low[v]);
      } else {
        b[v] = Simd::load_masked_or(high[v], high_mask[v], Simd::load_masked(low[v], low_mask[v]));
      }
      Simd::store(copy + v * kLanes, b[v]);
      low[v] += pitch;
      if constexpr (!Whole) high[v] += pitch;
    }
    copy += Vectors * kLanes;
  }

  const float* low[Vectors];
  const float* high[Vectors];
  Simd::Mask low_mask[Vectors];
  Simd::Mask high_mask[Vectors];
  int64_t pitch;
  float* copy;
};

template <int Rows, int Vectors, bool Whole>
void copy_tile(const GemmTile& tile, const GemmColumnSource& source) {
  typename Simd::Reg acc[Rows][Vectors];
  const bool init = tile.row_init != nullptr && !tile.accumulate;
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
    const auto start = init ? Simd::set1(tile.row_init[i]) : Simd::zero();
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[i][v] = start;
  }
  CopiedColumns<Vectors, Whole> columns(source);
  const float* a = tile.a;
  int64_t left = tile.depth;
  bool add = tile.accumulate;
  do {
    const int64_t terms = left < kMaxTerms ? left : kMaxTerms;
    for (int64_t k = 0; k < terms; ++k, a += Rows) {
      typename Simd::Reg bv[Vectors];
      columns.load(bv);
#pragma GCC unroll 32
      for (int i = 0; i < Rows; ++i) {
        const auto ai = Simd::set1(a[i]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
      }
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

template <int Rows, int Vectors>
void copy_any_tile(const GemmTile& tile, const GemmColumnSource& source) {
  bool whole = true;
  for (int v = 0; v < Vectors; ++v) whole = whole && source.split[v] == Simd::kLanes;
  if (whole) return copy_tile<Rows, Vectors, true>(tile, source);
  copy_tile<Rows, Vectors, false>(tile, source);
}

template <int Vectors, typename Sequence>
struct CopyTilesByRows;

template <int Vectors, int... RowsMinusOne>
struct CopyTilesByRows<Vectors, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr GemmCopyTileFn kTiles[] = {&copy_any_tile<RowsMinusOne + 1, Vectors>...};
};

template <int Vectors, AForm Form, typename Sequence>
struct TilesByRows;

template <int Vectors, AForm Form, int... RowsMinusOne>
struct TilesByRows<Vectors, Form, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr GemmTileFn kTiles[] = {&gemm_tile<RowsMinusOne + 1, Vectors, Form>...};
};

// Instantiates the kernels with 1 .. MaxRows rows and describes them.
template <int MaxRows, int Vectors, AForm Form>
constexpr GemmFamily gemm_family() {
  using Sequence = std::make_integer_sequence<int, MaxRows>;
  using Tiles = TilesByRows<Vectors, Form, Sequence>;
  if constexpr (Form == AForm::kPacked)
    return {Vectors, MaxRows, Tiles::kTiles, CopyTilesByRows<Vectors, Sequence>::kTiles};
  return {Vectors, MaxRows, Tiles::kTiles};
}

// Adds the accumulators of a rows tile to C, or stores them there, and clears them.
template <int Rows, int Vectors>
inline void flush_rows_tile(const GemmRowsTile& tile, Simd::Reg (&acc)[Rows][Vectors], bool add) {
  constexpr int kLanes = Simd::kLanes;
  float* const* rows = tile.c;
  const int64_t offset = tile.c_offset;
  if (tile.columns == Vectors * kLanes) {
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        float* c = rows[i] + offset + v * kLanes;
        Simd::store(c, add ? Simd::add(Simd::load(c), acc[i][v]) : acc[i][v]);
        acc[i][v] = Simd::zero();
      }
    return;
  }
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const int64_t left = tile.columns - v * kLanes;
    const Simd::Mask mask = Simd::mask_first(left < 0 ? 0 : left > kLanes ? kLanes : left);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      float* c = rows[i] + offset + v * kLanes;
      const auto x = add ? Simd::add(Simd::load_masked(c, mask), acc[i][v]) : acc[i][v];
      Simd::store_masked(c, x, mask);
      acc[i][v] = Simd::zero();
    }
  }
}

template <int Rows, int Vectors>
void rows_tile(const GemmRowsTile& tile) {
  constexpr int kLanes = Simd::kLanes;
  typename Simd::Reg acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    auto start = Simd::zero();
    if (tile.column_init != nullptr && !tile.accumulate) {
      const int64_t left = tile.columns - v * kLanes;
      const Simd::Mask mask = Simd::mask_first(left < 0 ? 0 : left > kLanes ? kLanes : left);
      start = Simd::load_masked(tile.column_init + (left > 0 ? v * kLanes : 0), mask);
    }
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) acc[i][v] = start;
  }

  bool add = tile.accumulate;
  int64_t room = kMaxTerms;  // terms until the next partial sum is stored
  const float* const* a = tile.a;
  for (int64_t s = 0; s < tile.segments; ++s, a += Rows) {
    const float* row[Rows];
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) row[i] = a[i];
    const float* b = tile.b + tile.b_offsets[s] * (Vectors * kLanes);
    for (int64_t k = 0; k < tile.depth;) {
      if (room == 0) {
        flush_rows_tile<Rows, Vectors>(tile, acc, add);
        add = true;
        room = kMaxTerms;
      }
      const int64_t end = tile.depth - k < room ? tile.depth : k + room;
      room -= end - k;
      if constexpr (Vectors == 1 && kLanes > 1) {
        for (; k + 1 < end; k += 2, b += 2 * kLanes)
          step_pair<Simd>([&](int i) { return row[i] + k; }, b, kLanes, acc);
      }
      for (; k < end; ++k, b += Vectors * kLanes) {
        typename Simd::Reg bv[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) bv[v] = Simd::load(b + v * kLanes);
#pragma GCC unroll 32
        for (int i = 0; i < Rows; ++i) {
          const auto ai = Simd::set1(row[i][k]);
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
        }
      }
    }
  }
  flush_rows_tile<Rows, Vectors>(tile, acc, add);
}

// acc += A B over one k, for neighbouring rows of A side by side in memory and a tile one vector
// wide: again one load and one shuffle serve two multiply-adds. acc[i] holds row i in its even
// lanes and row i + 1 in its odd ones, acc[i + 1] the other halves, until sort_pairs.
template <class V, int Rows>
inline void step_row_pairs(const float* a, const float* b, typename V::Reg (&acc)[Rows][1]) {
  const auto bv = V::load(b);
#pragma GCC unroll 32
  for (int i = 0; i + 1 < Rows; i += 2) {
    const auto pair = V::set_pair(a + i);
    acc[i][0] = V::fma(pair, bv, acc[i][0]);
    acc[i + 1][0] = V::fma(V::swap_pairs(pair), bv, acc[i + 1][0]);
  }
  if constexpr (Rows % 2 != 0)
    acc[Rows - 1][0] = V::fma(V::set1(a[Rows - 1]), bv, acc[Rows - 1][0]);
}

template <class V, int Rows>
inline void sort_pairs(typename V::Reg (&acc)[Rows][1]) {
#pragma GCC unroll 32
  for (int i = 0; i + 1 < Rows; i += 2) {
    const auto x = acc[i][0], y = acc[i + 1][0];
    acc[i][0] = V::blend_odd(x, y);
    acc[i + 1][0] = V::blend_odd(y, x);
  }
}

template <int Rows, int Vectors>
void columns_tile(const GemmColumnsTile& tile) {
  constexpr int kLanes = Simd::kLanes;
  constexpr bool kPairs = Vectors == 1 && kLanes > 1;
  typename Simd::Reg acc[Rows][Vectors];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::zero();

  const int64_t a_step = tile.a_step;
  bool add = tile.accumulate;
  const auto flush = [&] {
    if constexpr (kPairs) sort_pairs<Simd>(acc);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        float* c = tile.c + i * tile.c_pitch + v * kLanes;
        Simd::store(c, add ? Simd::add(Simd::load(c), acc[i][v]) : acc[i][v]);
        acc[i][v] = Simd::zero();
      }
    add = true;
  };
  int64_t room = kMaxTerms;
  for (int64_t r = 0; r < tile.run_count; ++r) {
    const GemmRun& run = tile.runs[r];
    const float* a = tile.a + run.a;
    const float* b = tile.b + run.b * (Vectors * kLanes);
    for (int64_t left = run.depth; left > 0;) {
      if (room == 0) {
        flush();
        room = kMaxTerms;
      }
      const int64_t terms = left < room ? left : room;
      left -= terms;
      room -= terms;
      for (int64_t k = 0; k < terms; ++k, a += a_step, b += Vectors * kLanes) {
        if constexpr (kPairs) {
          step_row_pairs<Simd>(a, b, acc);
          continue;
        }
        typename Simd::Reg bv[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) bv[v] = Simd::load(b + v * kLanes);
#pragma GCC unroll 32
        for (int i = 0; i < Rows; ++i) {
          const auto ai = Simd::set1(a[i]);
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::fma(ai, bv[v], acc[i][v]);
        }
      }
    }
  }
  flush();
}

template <int Vectors, typename Sequence>
struct PlaceTilesByRows;

template <int Vectors, int... RowsMinusOne>
struct PlaceTilesByRows<Vectors, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr GemmRowsFn kRows[] = {&rows_tile<RowsMinusOne + 1, Vectors>...};
  static constexpr GemmColumnsFn kColumns[] = {&columns_tile<RowsMinusOne + 1, Vectors>...};
};

template <int MaxRows, int Vectors>
constexpr GemmPlaceFamily place_family() {
  using Tiles = PlaceTilesByRows<Vectors, std::make_integer_sequence<int, MaxRows>>;
  return {Vectors, MaxRows, Tiles::kRows, Tiles::kColumns};
}

}  // namespace
