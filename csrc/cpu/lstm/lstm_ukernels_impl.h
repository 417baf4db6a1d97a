// SPDX-License-Identifier: MIT
// The LSTM microkernels as templates, instantiated by lstm_ukernels_<isa>.cpp after it has included
// its simd_<isa>.h and simd_math_impl.h. Everything has internal linkage.
//
// A sum runs over its terms in order, whatever the height of the tile, so that a row's result does
// not depend on which rows share its tile.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/lstm/lstm_ukernels.h"

namespace {

using fastconv::cpu::kLstmLine;
using fastconv::cpu::LstmCellFn;
using fastconv::cpu::LstmCellForm;
using fastconv::cpu::LstmCellTile;
using fastconv::cpu::LstmDots;
using fastconv::cpu::LstmKernels;
using fastconv::cpu::LstmRowProduct;

constexpr int kLanes = Simd::kLanes;
constexpr int kGates = 4;

// `count` lanes of memory as a vector: whole when all lanes exist.
struct Lanes {
  explicit Lanes(int64_t count)
      : whole(count >= kLanes), mask(Simd::mask_first(whole ? kLanes : count)) {}
  Simd::Reg load(const float* p) const {
    return whole ? Simd::load(p) : Simd::load_masked(p, mask);
  }
  void store(float* p, Simd::Reg x) const {
    if (whole)
      Simd::store(p, x);
    else
      Simd::store_masked(p, x, mask);
  }
  bool whole;
  Simd::Mask mask;
};

// Longest run of additions into one register before it is added to the others: shorter than a sum
// over 128 units needs, long enough that the additions in between cost under 2 %.
constexpr int64_t kCellTerms = 128;

// The sums of a tile: for each row `Blocks` blocks of `Vectors` vectors.
template <int Rows, int Blocks, int Vectors>
using CellSums = Simd::Reg[Rows][Blocks * Vectors];

// `depth` terms of a product; the blocks of `weights` are block_step floats apart. Inlined by
// force, as what follows: a call would keep the sums in memory, which costs a factor of two to
// three. With `Streams`, every term asks for one line from `soon` on.
template <int Rows, int Blocks, int Vectors, bool Streams>
[[gnu::always_inline]] inline void add_terms(CellSums<Rows, Blocks, Vectors>& acc, int64_t depth,
                                             const float* a, int64_t a_pitch, const float* weights,
                                             int64_t block_step, const float* soon) {
  for (int64_t k = 0; k < depth; ++k) {
    if constexpr (Streams) __builtin_prefetch(soon + k * kLstmLine, 0, 2);
    Simd::Reg ak[Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) ak[i] = Simd::set1(a[i * a_pitch + k]);
#pragma GCC unroll 8
    for (int b = 0; b < Blocks; ++b)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        const Simd::Reg w = Simd::load(weights + b * block_step + v * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
          acc[i][b * Vectors + v] = Simd::fma(ak[i], w, acc[i][b * Vectors + v]);
      }
    weights += Vectors * kLanes;
  }
}

// Sums in registers, and those of earlier runs of kCellTerms in memory.
template <int Rows, int Blocks, int Vectors, bool Streams = false>
struct CellRuns {
  static constexpr int kAll = Blocks * Vectors;
  using Sums = CellSums<Rows, Blocks, Vectors>;
  alignas(64) float sums[Rows][kAll * kLanes];
  int64_t room = kCellTerms;  // terms left of this run
  bool spilled = false;

  // The sums of all terms of a tile end in `sums`.
  [[gnu::always_inline]] inline void run(const LstmCellTile& t) {
    Sums acc;
#pragma GCC unroll 16
    for (int v = 0; v < kAll; ++v) {
      const Simd::Reg bias = Simd::load(t.bias + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) acc[i][v] = bias;
    }
    if (t.pre != nullptr) {
#pragma GCC unroll 16
      for (int v = 0; v < kAll; ++v)
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
          acc[i][v] = Simd::add(acc[i][v], Simd::load(t.pre + i * t.pre_pitch + v * kLanes));
    }
    add<false>(acc, t.x_depth, t.x, t.x_pitch, t.weights_x, nullptr);
    add<Streams>(acc, t.h_depth, t.h, t.h_pitch, t.weights_h, t.soon);
    spill(acc);
  }

  template <bool Asks>
  [[gnu::always_inline]] inline void add(Sums& acc, int64_t depth, const float* a, int64_t a_pitch,
                                         const float* weights, const float* soon) {
    const int64_t block_step = depth * Vectors * kLanes;
    for (int64_t k = 0; k < depth;) {
      if (room == 0) {
        spill(acc);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 16
          for (int v = 0; v < kAll; ++v) acc[i][v] = Simd::zero();
        room = kCellTerms;
      }
      const int64_t terms = depth - k < room ? depth - k : room;
      add_terms<Rows, Blocks, Vectors, Asks>(acc, terms, a + k, a_pitch,
                                             weights + k * Vectors * kLanes, block_step,
                                             Asks ? soon + k * kLstmLine : nullptr);
      k += terms;
      room -= terms;
    }
  }

  [[gnu::always_inline]] inline void spill(const Sums& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < kAll; ++v) {
        float* sum = sums[i] + v * kLanes;
        Simd::store(sum, spilled ? Simd::add(Simd::load(sum), acc[i][v]) : acc[i][v]);
      }
    spilled = true;
  }
};

// Cells of N vectors.
template <int N>
struct Cells {
  Simd::Reg i[N], f[N], g[N], o[N], c[N], out[N];

  // From four pre-activations, lanes of cell k at pre[k], and the states before in `c`.
  [[gnu::always_inline]] inline void finish(const float* const (&pre)[N]) {
    const auto load = [&](int gate, Simd::Reg(&to)[N]) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) to[k] = Simd::load(pre[k] + gate * kLanes);
    };
    load(0, i);
    Math::sigmoid(i);
    load(2, g);
    Math::tanh(g);
    load(1, f);
    Math::sigmoid(f);
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) {
      c[k] = Simd::fma(f[k], c[k], Simd::mul(i[k], g[k]));
      out[k] = c[k];
    }
    load(3, o);
    Math::sigmoid(o);
    Math::tanh(out);
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) out[k] = Simd::mul(o[k], out[k]);
  }
};

// Asks for the lines that a tile is going to write, which lie in as many streams as it has rows and
// gates: the sums hide the time that takes, when they are long.
template <int Rows, int Blocks>
[[gnu::always_inline]] inline void prefetch_results(const LstmCellTile& t) {
  if (t.gates == nullptr || t.x_depth + t.h_depth < kCellTerms) return;
  for (int64_t row = 0; row < Rows; ++row)
    for (int64_t unit = 0; unit < Blocks * kLanes; unit += kLanes) {
      for (int64_t g = 0; g < kGates; ++g)
        __builtin_prefetch(t.gates + (row * kGates + g) * t.hidden + unit, 1);
      __builtin_prefetch(t.cells + row * t.hidden + unit, 1);
      __builtin_prefetch(t.out + row * t.out_pitch + unit, 1);
    }
}

template <int Rows, int Blocks, bool Streams = false>
void cell_tile(const LstmCellTile& t) {
  prefetch_results<Rows, Blocks>(t);
  CellRuns<Rows, Blocks, kGates, Streams> runs;
  runs.run(t);
  // Cell k is that of row k / Blocks and block k % Blocks.
  constexpr int kCells = Rows * Blocks;
  Cells<kCells> cells;
  const float* pre[kCells];
#pragma GCC unroll 8
  for (int k = 0; k < kCells; ++k) {
    const int64_t unit = k % Blocks * kLanes;
    pre[k] = runs.sums[k / Blocks] + kGates * unit;
    cells.c[k] = Lanes(t.units - unit).load(t.c + k / Blocks * t.hidden + unit);
  }
  cells.finish(pre);
#pragma GCC unroll 8
  for (int k = 0; k < kCells; ++k) {
    const int64_t row = k / Blocks, unit = k % Blocks * kLanes;
    const Lanes lanes(t.units - unit);
    lanes.store(t.c + row * t.hidden + unit, cells.c[k]);
    lanes.store(t.out + row * t.out_pitch + unit, cells.out[k]);
    if (t.gates == nullptr) continue;
    float* gates = t.gates + row * kGates * t.hidden + unit;
    lanes.store(gates, cells.i[k]);
    lanes.store(gates + t.hidden, cells.f[k]);
    lanes.store(gates + 2 * t.hidden, cells.g[k]);
    lanes.store(gates + 3 * t.hidden, cells.o[k]);
    lanes.store(t.cells + row * t.hidden + unit, cells.c[k]);
  }
}

template <int Rows, int Blocks>
constexpr LstmCellForm cell_form() {
  return {Blocks, &cell_tile<Rows, Blocks>, &cell_tile<Rows, 1>, &cell_tile<Rows, 1, true>};
}

// --- The narrow block: up to lanes / 4 units, whose four gates share one vector -----------------

constexpr int kNarrowUnits = kLanes / kGates;

// The cells of all rows of a tile, those of four rows in one vector: lane r * kNarrowUnits + u.
template <int Rows>
[[gnu::noinline]] void finish_narrow_cells(const LstmCellTile& t, const float (*sums)[kLanes]) {
  constexpr int kGroups = (Rows + kGates - 1) / kGates;
  alignas(64) float pre[kGroups][kGates * kLanes], c[kGroups][kLanes];
  const float* from[kGroups];
  Cells<kGroups> x;
#pragma GCC unroll 4
  for (int k = 0; k < kGroups; ++k) {
    // Rows past the end repeat the last one.
#pragma GCC unroll 4
    for (int r = 0; r < kGates; ++r) {
      const int row = k * kGates + r < Rows ? k * kGates + r : Rows - 1;
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g)
        __builtin_memcpy(pre[k] + g * kLanes + r * kNarrowUnits, sums[row] + g * kNarrowUnits,
                         kNarrowUnits * sizeof(float));
      for (int64_t u = 0; u < kNarrowUnits; ++u)
        c[k][r * kNarrowUnits + u] = u < t.units ? t.c[row * t.hidden + u] : 0.0f;
    }
    from[k] = pre[k];
    x.c[k] = Simd::load(c[k]);
  }
  x.finish(from);
  const auto scatter = [&](const Simd::Reg(&values)[kGroups], float* to, int64_t pitch) {
    alignas(64) float lanes[kGroups * kLanes];
#pragma GCC unroll 4
    for (int k = 0; k < kGroups; ++k) Simd::store(lanes + k * kLanes, values[k]);
    for (int64_t r = 0; r < Rows; ++r)
      for (int64_t u = 0; u < t.units; ++u) to[r * pitch + u] = lanes[r * kNarrowUnits + u];
  };
  scatter(x.c, t.c, t.hidden);
  scatter(x.out, t.out, t.out_pitch);
  if (t.gates == nullptr) return;
  scatter(x.i, t.gates, kGates * t.hidden);
  scatter(x.f, t.gates + t.hidden, kGates * t.hidden);
  scatter(x.g, t.gates + 2 * t.hidden, kGates * t.hidden);
  scatter(x.o, t.gates + 3 * t.hidden, kGates * t.hidden);
  scatter(x.c, t.cells, t.hidden);
}

template <int Rows>
void narrow_tile(const LstmCellTile& t) {
  CellRuns<Rows, 1, 1> runs;
  runs.run(t);
  finish_narrow_cells<Rows>(t, runs.sums);
}

template <typename Sequence>
struct NarrowTiles;

template <int... RowsMinusOne>
struct NarrowTiles<std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr LstmCellFn kByRows[] = {&narrow_tile<RowsMinusOne + 1>...};
};

// Lanes whose sum is that of row[k] * a[k], k < depth. Two sums, which every kCellTerms terms are
// added to the others; rows that follow each other overlap.
[[gnu::always_inline]] inline Simd::Reg dot(const float* row, const float* a, int64_t depth) {
  Simd::Reg total = Simd::zero();
  for (int64_t begin = 0; begin < depth; begin += 2 * kCellTerms * kLanes) {
    const int64_t left = depth - begin;
    const int64_t end = begin + (left < 2 * kCellTerms * kLanes ? left : 2 * kCellTerms * kLanes);
    Simd::Reg even = Simd::zero(), odd = Simd::zero();
    int64_t k = begin;
    for (; k + 2 * kLanes <= end; k += 2 * kLanes) {
      even = Simd::fma(Simd::load(row + k), Simd::load(a + k), even);
      odd = Simd::fma(Simd::load(row + k + kLanes), Simd::load(a + k + kLanes), odd);
    }
    for (; k < end; k += kLanes) {
      const Lanes part(end - k);
      even = Simd::fma(part.load(row + k), part.load(a + k), even);
    }
    total = Simd::add(total, Simd::add(even, odd));
  }
  return total;
}

// Row by row and matrix by matrix, as memory has them: one stream is read twice as fast as one for
// each of kLanes rows.
void dots(const LstmDots& d) {
  Simd::Reg sums[kLanes];
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l)
    sums[l] = l < d.valid ? dot(d.x_rows + l * d.x_depth, d.x, d.x_depth) : Simd::zero();
  if (d.h_depth > 0)
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l)
      if (l < d.valid) sums[l] = Simd::add(sums[l], dot(d.h_rows + l * d.h_depth, d.h, d.h_depth));
  Lanes(d.valid).store(d.to, Simd::reduce_add_rows(sums));
}

// `Vectors` vectors of columns, the last one perhaps in part. Term k belongs to sum k % Chains of
// its column: with few columns one sum each would wait for its own last addition.
template <int Vectors, int Chains>
[[gnu::always_inline]] inline void row_product_columns(const LstmRowProduct& p, int64_t column) {
  const Lanes last(p.columns - column - (Vectors - 1) * kLanes);
  const int64_t first = p.backwards ? p.depth - 1 : 0, step = p.backwards ? -1 : 1;
  const float* a = p.a + first;
  const float* b = p.b + first * p.pitch + column;
  const int64_t b_step = step * p.pitch;
  Simd::Reg total[Vectors];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) total[v] = Simd::zero();
  for (int64_t begin = 0; begin < p.depth; begin += Chains * kCellTerms) {
    const int64_t left = p.depth - begin;
    const int64_t end = begin + (left < Chains * kCellTerms ? left : Chains * kCellTerms);
    Simd::Reg sums[Chains][Vectors];
#pragma GCC unroll 4
    for (int c = 0; c < Chains; ++c)
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) sums[c][v] = Simd::zero();
    const auto add = [&](int64_t k, Simd::Reg* to) __attribute__((always_inline)) {
      const Simd::Reg ak = Simd::set1(a[k * step]);
      const float* row = b + k * b_step;
#pragma GCC unroll 16
      for (int v = 0; v + 1 < Vectors; ++v)
        to[v] = Simd::fma(ak, Simd::load(row + v * kLanes), to[v]);
      to[Vectors - 1] = Simd::fma(ak, last.load(row + (Vectors - 1) * kLanes), to[Vectors - 1]);
    };
    int64_t k = begin;
    for (; k + Chains <= end; k += Chains)
#pragma GCC unroll 4
      for (int c = 0; c < Chains; ++c) add(k + c, sums[c]);
    for (; k < end; ++k) add(k, sums[0]);
#pragma GCC unroll 4
    for (int step = Chains / 2; step > 0; step /= 2)
#pragma GCC unroll 4
      for (int c = 0; c < step; ++c)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) sums[c][v] = Simd::add(sums[c][v], sums[c + step][v]);
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) total[v] = Simd::add(total[v], sums[0][v]);
  }
#pragma GCC unroll 16
  for (int v = 0; v + 1 < Vectors; ++v) Simd::store(p.to + column + v * kLanes, total[v]);
  last.store(p.to + column + (Vectors - 1) * kLanes, total[Vectors - 1]);
}

// Blocks of `Vectors` vectors while there are as many, then smaller ones.
template <int Vectors, int Chains>
inline void row_product_blocks(const LstmRowProduct& p, int64_t column) {
  for (; p.columns - column > (Vectors - 1) * kLanes; column += Vectors * kLanes)
    row_product_columns<Vectors, Chains>(p, column);
  if constexpr (Vectors > 1)
    if (column < p.columns) row_product_blocks<Vectors / 2, Chains>(p, column);
}

// `Sums` registers hold sums.
template <int Sums>
void row_product(const LstmRowProduct& p) {
  if (p.pitch <= 4 * kLanes)
    row_product_blocks<Sums / 4, 4>(p, 0);
  else if (p.pitch <= 8 * kLanes)
    row_product_blocks<Sums / 2, 2>(p, 0);
  else
    row_product_blocks<Sums, 1>(p, 0);
}

void transpose_strip(const float* from, int64_t from_pitch, int64_t valid, int64_t depth, float* to,
                     int64_t to_pitch, int64_t stored) {
  const Lanes columns(stored);
  for (int64_t k = 0; k < depth; k += kLanes) {
    const Lanes lanes(depth - k);
    Simd::Reg rows[kLanes];
    for (int l = 0; l < kLanes; ++l)
      rows[l] = l < valid ? lanes.load(from + l * from_pitch + k) : Simd::zero();
    Simd::transpose(rows);
    const int64_t left = depth - k < kLanes ? depth - k : kLanes;
    for (int64_t l = 0; l < left; ++l) columns.store(to + (k + l) * to_pitch, rows[l]);
  }
}

void pack_rows(const float* from, int64_t pitch, int64_t depth, int64_t valid, int64_t width,
               float* to, int64_t to_pitch) {
  for (int64_t l = 0; l < width; l += kLanes) {
    const Lanes stored(width - l);
    const int64_t left = valid - l;
    const Lanes read(left < 0 ? 0 : left);
    for (int64_t k = 0; k < depth; ++k)
      stored.store(to + k * to_pitch + l, read.load(from + k * pitch + l));
  }
}

void cell_outputs(const float* gates, const float* cells, int64_t rows, int64_t hidden, float* m) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t u = 0; u < hidden; u += kLanes) {
      const Lanes lanes(hidden - u);
      const Simd::Reg o = lanes.load(gates + (r * kGates + 3) * hidden + u);
      lanes.store(m + r * hidden + u, Simd::mul(o, Math::tanh(lanes.load(cells + r * hidden + u))));
    }
}

}  // namespace
