// SPDX-License-Identifier: MIT
// The backward step of an LSTM as templates, included after lstm_ukernels_impl.h. Everything has
// internal linkage.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/lstm/lstm_ukernels.h"
#include "cpu/lstm/lstm_ukernels_impl.h"

namespace {

using fastconv::cpu::LstmGateGradients;
using fastconv::cpu::LstmGradFn;
using fastconv::cpu::LstmGradForms;
using fastconv::cpu::LstmGradTile;

// N vectors of one row from `unit` on, together: tanh is one long chain of instructions. grad_m
// stands at the first of them. With Whole, all lanes exist.
template <int N, bool Whole>
[[gnu::always_inline]] inline void gate_gradient_cells(const LstmGateGradients& t, int64_t row,
                                                       int64_t unit, const float* grad_m) {
  const Simd::Reg one = Simd::set1(1.0f);
  const auto lanes = [&](int k) {
    const int64_t left = t.units - unit - k * kLanes;
    return Lanes(Whole ? kLanes : left < 0 ? 0 : left);
  };
  const auto load = [&](const float* from, int k) __attribute__((always_inline)) {
    if constexpr (Whole) return Simd::load(from + k * kLanes);
    return lanes(k).load(from + k * kLanes);
  };
  const auto store = [&](float* to, int k, Simd::Reg x) __attribute__((always_inline)) {
    if constexpr (Whole) return Simd::store(to + k * kLanes, x);
    lanes(k).store(to + k * kLanes, x);
  };
  const float* gates = t.gates + row * kGates * t.hidden + unit;
  const float* cells_before =
      t.cells_before == nullptr ? nullptr : t.cells_before + row * t.hidden + unit;
  const float* grad_output =
      t.grad_output == nullptr ? nullptr : t.grad_output + row * t.grad_output_pitch + unit;
  float* grad_gates = t.grad_gates + row * t.grad_gates_pitch + unit;
  float* grad_c = t.grad_c + row * t.hidden + unit;
  Simd::Reg cell[N];
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) cell[k] = load(t.cells + row * t.hidden + unit, k);
  Math::tanh(cell);
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) {
    const Simd::Reg i = load(gates, k), f = load(gates + t.hidden, k);
    const Simd::Reg g = load(gates + 2 * t.hidden, k), o = load(gates + 3 * t.hidden, k);
    Simd::Reg to_m = load(grad_m, k);
    if (grad_output != nullptr) to_m = Simd::add(to_m, load(grad_output, k));
    const Simd::Reg to_tanh = Simd::mul(to_m, o);
    const Simd::Reg to_cell =
        Simd::add(load(grad_c, k), Simd::mul(to_tanh, Simd::sub(one, Simd::mul(cell[k], cell[k]))));
    store(grad_gates, k, Simd::mul(Simd::mul(to_cell, g), Simd::mul(i, Simd::sub(one, i))));
    const Simd::Reg before = cells_before == nullptr ? Simd::zero() : load(cells_before, k);
    store(grad_gates + t.hidden, k,
          Simd::mul(Simd::mul(to_cell, before), Simd::mul(f, Simd::sub(one, f))));
    store(grad_gates + 2 * t.hidden, k,
          Simd::mul(Simd::mul(to_cell, i), Simd::sub(one, Simd::mul(g, g))));
    store(grad_gates + 3 * t.hidden, k, Simd::mul(Simd::mul(to_tanh, cell[k]), Simd::sub(one, o)));
    store(grad_c, k, Simd::mul(to_cell, f));
  }
}

// The last 1 .. Most vectors of a row.
template <int Most>
[[gnu::always_inline]] inline void gate_gradient_rest(const LstmGateGradients& t, int64_t row,
                                                      int64_t unit, const float* grad_m) {
  if constexpr (Most > 1)
    if (t.units - unit <= (Most - 1) * kLanes)
      return gate_gradient_rest<Most - 1>(t, row, unit, grad_m);
  gate_gradient_cells<Most, false>(t, row, unit, grad_m);
}

// All units of a row, `Together` vectors at a time.
template <int Together>
[[gnu::always_inline]] inline void gate_gradient_row(const LstmGateGradients& t, int64_t row,
                                                     const float* grad_m) {
  int64_t unit = 0;
  for (; unit + Together * kLanes <= t.units; unit += Together * kLanes)
    gate_gradient_cells<Together, true>(t, row, unit, grad_m + unit);
  if (unit < t.units) gate_gradient_rest<Together>(t, row, unit, grad_m + unit);
}

// As wide as the panels by which threads share the units: whole and masked vectors may round
// differently, so none may be the one or the other depending on where a thread begins.
constexpr int kTogether = kLanes == 16 ? 4 : 2;

void gate_gradients(const LstmGateGradients& t) {
  for (int64_t row = 0; row < t.rows; ++row)
    gate_gradient_row<kTogether>(t, row, t.grad_m + row * t.grad_m_pitch);
}

// Asks for the lines that row `group / 5` of a tile is going to read and write, those of a gate or
// those of its states: a tile has 5 * Rows groups.
template <int Vectors>
[[gnu::always_inline]] inline void prefetch_group(const LstmGateGradients& t, int64_t group) {
  const int64_t row = group / (kGates + 1), g = group % (kGates + 1);
  const auto ask = [&](const float* from) __attribute__((always_inline)) {
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(from + v * kLanes);
  };
  if (g < kGates) {
    ask(t.gates + (row * kGates + g) * t.hidden);
    float* to = t.grad_gates + row * t.grad_gates_pitch + g * t.hidden;
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(to + v * kLanes, 1);
    return;
  }
  ask(t.cells + row * t.hidden);
  if (t.cells_before != nullptr) ask(t.cells_before + row * t.hidden);
  if (t.grad_output != nullptr) ask(t.grad_output + row * t.grad_output_pitch);
}

template <int Rows, int Vectors>
void grad_tile(const LstmGradTile& tile) {
  const LstmGateGradients& t = tile.gates;
  CellRuns<Rows, 1, Vectors> runs;
  typename CellRuns<Rows, 1, Vectors>::Sums acc;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[i][v] = Simd::zero();
  // Some groups at a time, in between the terms: the caches can only wait for so many lines at
  // once.
  constexpr int64_t kGroups = (kGates + 1) * Rows, kLeast = 16;
  const int64_t chunks = tile.asks ? tile.depth / kLeast + 1 : 1;
  const int64_t groups = (kGroups + chunks - 1) / chunks, each = tile.depth * groups / kGroups;
  for (int64_t k = 0, group = tile.asks ? 0 : kGroups; k < tile.depth;) {
    const int64_t end = group + groups < kGroups ? group + groups : kGroups;
    const int64_t terms = end < kGroups ? each : tile.depth - k;
    for (; group < end; ++group) prefetch_group<Vectors>(t, group);
    runs.template add<false>(acc, terms, tile.later + k, tile.later_pitch,
                             tile.weights + k * Vectors * kLanes, nullptr);
    k += terms;
  }
  runs.spill(acc);
  for (int64_t row = 0; row < Rows; ++row) {
    float* sums = runs.sums[row];
    if (t.grad_m != nullptr)
      for (int64_t u = 0; u < t.units; u += kLanes) {
        const Simd::Reg before = Lanes(t.units - u).load(t.grad_m + row * t.grad_m_pitch + u);
        Simd::store(sums + u, Simd::add(before, Simd::load(sums + u)));
      }
    gate_gradient_row<Vectors>(t, row, sums);
  }
}

template <int Vectors, typename Sequence>
struct GradTiles;

template <int Vectors, int... RowsMinusOne>
struct GradTiles<Vectors, std::integer_sequence<int, RowsMinusOne...>> {
  static constexpr LstmGradFn kByRows[] = {&grad_tile<RowsMinusOne + 1, Vectors>...};
};

template <int MaxRows, int Vectors>
constexpr LstmGradForms grad_forms() {
  return {MaxRows, GradTiles<Vectors, std::make_integer_sequence<int, MaxRows>>::kByRows};
}

}  // namespace
