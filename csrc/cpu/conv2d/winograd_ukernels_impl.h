// SPDX-License-Identifier: MIT
// Winograd transforms, written once over Simd and the form of the tile; instantiated by
// winograd_ukernels_<isa>.cpp. Internal linkage throughout, see gemm_ukernels_impl.h.
//
// A form has the five transforms of one dimension, each a few additions. Both dimensions together:
// the real points of one with those of the other give real coefficients, in number kReal * kReal.
// The point i, whose real and imaginary part follow the real points, gives with each real point a
// complex coefficient; with itself and with -i of the other dimension one each.
#pragma once

#include <cstdint>

#include "cpu/conv2d/winograd_ukernels.h"

namespace {

using fastconv::cpu::WinogradGradOutput;
using fastconv::cpu::WinogradInput;
using fastconv::cpu::WinogradKernels;
using fastconv::cpu::WinogradOutput;
using fastconv::cpu::WinogradTable;
using fastconv::cpu::WinogradWeights;
using fastconv::cpu::WinogradWeightSums;

constexpr int64_t kLanes = Simd::kLanes;
constexpr int kReal = 4;  // real points of either form

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline Simd::Reg half_of(Simd::Reg x) {
  return Simd::mul(Simd::set1(0.5f), x);
}
inline Simd::Reg quarter_of(Simd::Reg x) {
  return Simd::mul(Simd::set1(0.25f), x);
}

// Points 0, 1, -1, infinity.
struct Tile2 {
  static constexpr int kTile = 2;
  static constexpr int kPatch = 4;
  static constexpr bool kComplex = false;
  static constexpr int kCoefficients = 16;

  static void input(const Simd::Reg* d, Simd::Reg* t) {
    t[0] = Simd::sub(d[0], d[2]);
    t[1] = Simd::add(d[1], d[2]);
    t[2] = Simd::sub(d[2], d[1]);
    t[3] = Simd::sub(d[1], d[3]);
  }
  static void weights(const Simd::Reg* g, Simd::Reg* t) {
    const Simd::Reg outer = Simd::add(g[0], g[2]);
    t[0] = g[0];
    t[1] = half_of(Simd::add(outer, g[1]));
    t[2] = half_of(Simd::sub(outer, g[1]));
    t[3] = g[2];
  }
  static void output(const Simd::Reg* m, Simd::Reg* y) {
    y[0] = Simd::add(Simd::add(m[0], m[1]), m[2]);
    y[1] = Simd::sub(Simd::sub(m[1], m[2]), m[3]);
  }
  // The transpose of output().
  static void grad_output(const Simd::Reg* y, Simd::Reg* m) {
    m[0] = y[0];
    m[1] = Simd::add(y[0], y[1]);
    m[2] = Simd::sub(y[0], y[1]);
    m[3] = Simd::sub(Simd::zero(), y[1]);
  }
  // The transpose of weights().
  static void weight_sums(const Simd::Reg* u, Simd::Reg* g) {
    const Simd::Reg even = half_of(Simd::add(u[1], u[2]));
    g[0] = Simd::add(u[0], even);
    g[1] = half_of(Simd::sub(u[1], u[2]));
    g[2] = Simd::add(even, u[3]);
  }
};

// Points 0, 1, -1, infinity, and i in two parts: a Fourier transform of length four, and what it
// takes for wrapped to the two ends.
struct Tile4 {
  static constexpr int kTile = 4;
  static constexpr int kPatch = 6;
  static constexpr bool kComplex = true;
  static constexpr int kCoefficients = 46;

  static void input(const Simd::Reg* d, Simd::Reg* t) {
    const Simd::Reg even = Simd::add(d[2], d[4]);
    const Simd::Reg odd = Simd::add(d[1], d[3]);
    t[0] = Simd::sub(d[0], d[4]);
    t[1] = Simd::add(even, odd);
    t[2] = Simd::sub(even, odd);
    t[3] = Simd::sub(d[5], d[1]);
    t[4] = Simd::sub(d[4], d[2]);
    t[5] = Simd::sub(d[3], d[1]);
  }
  static void weights(const Simd::Reg* g, Simd::Reg* t) {
    const Simd::Reg outer = Simd::add(g[0], g[2]);
    t[0] = g[0];
    t[1] = quarter_of(Simd::add(outer, g[1]));
    t[2] = quarter_of(Simd::sub(outer, g[1]));
    t[3] = g[2];
    t[4] = half_of(Simd::sub(g[0], g[2]));
    t[5] = half_of(g[1]);
  }
  static void output(const Simd::Reg* m, Simd::Reg* y) {
    const Simd::Reg even = Simd::add(m[1], m[2]);
    const Simd::Reg odd = Simd::sub(m[1], m[2]);
    y[0] = Simd::add(m[0], Simd::add(even, m[4]));
    y[1] = Simd::sub(odd, m[5]);
    y[2] = Simd::sub(even, m[4]);
    y[3] = Simd::add(m[3], Simd::add(odd, m[5]));
  }
  static void grad_output(const Simd::Reg* y, Simd::Reg* m) {
    const Simd::Reg even = Simd::add(y[0], y[2]);
    const Simd::Reg odd = Simd::add(y[1], y[3]);
    m[0] = y[0];
    m[1] = Simd::add(even, odd);
    m[2] = Simd::sub(even, odd);
    m[3] = y[3];
    m[4] = Simd::sub(y[0], y[2]);
    m[5] = Simd::sub(y[3], y[1]);
  }
  static void weight_sums(const Simd::Reg* u, Simd::Reg* g) {
    const Simd::Reg even = quarter_of(Simd::add(u[1], u[2]));
    const Simd::Reg odd = quarter_of(Simd::sub(u[1], u[2]));
    const Simd::Reg real = half_of(u[4]);
    g[0] = Simd::add(u[0], Simd::add(even, real));
    g[1] = Simd::add(odd, half_of(u[5]));
    g[2] = Simd::add(u[3], Simd::sub(even, real));
  }
};

// The coefficients of a tile in memory, one after another.
struct Coefficients {
  float* at;
  int64_t pitch;
  void put(Simd::Reg x) {
    Simd::store(at, x);
    at += pitch;
  }
};
struct ConstCoefficients {
  const float* at;
  int64_t pitch;
  Simd::Reg get() {
    const Simd::Reg x = Simd::load(at);
    at += pitch;
    return x;
  }
};

// Three products for a complex one: with v = a + bi and u = c + di, (a + b) c, a (d - c) and
// b (c + d). What each side stores of its numbers, and what the sides of results make of the
// products (for the weight gradient: by transposition).
template <typename Form>
struct Input {
  static void stage(const Simd::Reg* x, Simd::Reg* t) { Form::input(x, t); }
  static void put(Coefficients& to, Simd::Reg a, Simd::Reg b) {
    to.put(Simd::add(a, b));
    to.put(a);
    to.put(b);
  }
};
template <typename Form>
struct Weights {
  static void stage(const Simd::Reg* x, Simd::Reg* t) { Form::weights(x, t); }
  static void put(Coefficients& to, Simd::Reg c, Simd::Reg d) {
    to.put(c);
    to.put(Simd::sub(d, c));
    to.put(Simd::add(c, d));
  }
};
template <typename Form>
struct GradOutput {
  static void stage(const Simd::Reg* x, Simd::Reg* t) { Form::grad_output(x, t); }
  static void put(Coefficients& to, Simd::Reg real, Simd::Reg imaginary) {
    to.put(Simd::add(real, imaginary));
    to.put(imaginary);
    to.put(real);
  }
};
template <typename Form>
struct Output {
  static constexpr int kResults = Form::kTile;
  static void stage(const Simd::Reg* x, Simd::Reg* t) { Form::output(x, t); }
  static void get(ConstCoefficients& from, Simd::Reg* real, Simd::Reg* imaginary) {
    const Simd::Reg k1 = from.get(), k2 = from.get(), k3 = from.get();
    *real = Simd::sub(k1, k3);
    *imaginary = Simd::add(k1, k2);
  }
};
template <typename Form>
struct WeightSums {
  static constexpr int kResults = 3;
  static void stage(const Simd::Reg* x, Simd::Reg* t) { Form::weight_sums(x, t); }
  static void get(ConstCoefficients& from, Simd::Reg* real, Simd::Reg* imaginary) {
    const Simd::Reg k1 = from.get(), k2 = from.get(), k3 = from.get();
    *imaginary = Simd::sub(k2, k3);
    *real = Simd::sub(Simd::sub(k1, k2), k3);
  }
};

// Stores the coefficients of an operand of which every row has been transformed. The weights' that
// are complex in both dimensions count once for two pairs of conjugates, hence `scale`.
template <typename Form, typename Operand, int kRows>
[[gnu::always_inline]] inline void store_coefficients(const Simd::Reg (&rows)[kRows][Form::kPatch],
                                                      float scale, Coefficients to) {
  Simd::Reg column[kRows];
#pragma GCC unroll 4
  for (int q = 0; q < kReal; ++q) {
    Simd::Reg t[Form::kPatch];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) column[r] = rows[r][q];
    Operand::stage(column, t);
#pragma GCC unroll 4
    for (int p = 0; p < kReal; ++p) to.put(t[p]);
    if constexpr (Form::kComplex) Operand::put(to, t[4], t[5]);
  }
  if constexpr (Form::kComplex) {
    Simd::Reg a[Form::kPatch], b[Form::kPatch];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) column[r] = rows[r][4];
    Operand::stage(column, a);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) column[r] = rows[r][5];
    Operand::stage(column, b);
#pragma GCC unroll 4
    for (int p = 0; p < kReal; ++p) Operand::put(to, a[p], b[p]);
    const Simd::Reg s = Simd::set1(scale);
    Operand::put(to, Simd::mul(s, Simd::sub(a[4], b[5])), Simd::mul(s, Simd::add(a[5], b[4])));
    Operand::put(to, Simd::mul(s, Simd::add(a[4], b[5])), Simd::mul(s, Simd::sub(b[4], a[5])));
  }
}

// The transpose of store_coefficients: columns[q][y], ready for the transform of every row.
template <typename Form, typename Result>
[[gnu::always_inline]] inline void load_coefficients(
    ConstCoefficients from, float scale, Simd::Reg (&columns)[Form::kPatch][Result::kResults]) {
#pragma GCC unroll 4
  for (int q = 0; q < kReal; ++q) {
    Simd::Reg t[Form::kPatch];
#pragma GCC unroll 4
    for (int p = 0; p < kReal; ++p) t[p] = from.get();
    if constexpr (Form::kComplex) Result::get(from, &t[4], &t[5]);
    Result::stage(t, columns[q]);
  }
  if constexpr (Form::kComplex) {
    Simd::Reg a[Form::kPatch], b[Form::kPatch];
#pragma GCC unroll 4
    for (int p = 0; p < kReal; ++p) Result::get(from, &a[p], &b[p]);
    Simd::Reg same[2], opposite[2];  // point i with i, and with -i
    Result::get(from, &same[0], &same[1]);
    Result::get(from, &opposite[0], &opposite[1]);
    const Simd::Reg s = Simd::set1(scale);
    a[4] = Simd::mul(s, Simd::add(same[0], opposite[0]));
    b[5] = Simd::mul(s, Simd::sub(opposite[0], same[0]));
    a[5] = Simd::mul(s, Simd::sub(same[1], opposite[1]));
    b[4] = Simd::mul(s, Simd::add(same[1], opposite[1]));
    Result::stage(a, columns[4]);
    Result::stage(b, columns[5]);
  }
}

template <typename Form>
void transform_weights(const WinogradWeights& w) {
  for (int64_t c = 0; c < w.channels; ++c) {
    for (int64_t i = 0; i < w.rows; i += kLanes) {
      const float* taps = w.taps + c * 9 * w.rows + i;
      Simd::Reg rows[3][Form::kPatch];
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) {
        Simd::Reg g[3];
#pragma GCC unroll 3
        for (int q = 0; q < 3; ++q)
          g[q] = Simd::load(taps + (w.flip ? 8 - 3 * r - q : 3 * r + q) * w.rows);
        Form::weights(g, rows[r]);
      }
      store_coefficients<Form, Weights<Form>, 3>(rows, 0.5f,
                                                 {w.u + c * w.rows + i, w.coefficient_pitch});
    }
  }
}

template <typename Form>
void transform_input(const WinogradInput& in) {
  constexpr int kPatch = Form::kPatch;
  for (int64_t c = 0; c < in.channels; c += kLanes) {
    const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, in.channels - c));
    Simd::Reg rows[kPatch][kPatch];
#pragma GCC unroll 6
    for (int r = 0; r < kPatch; ++r) {
      Simd::Reg d[kPatch];
#pragma GCC unroll 6
      for (int q = 0; q < kPatch; ++q)
        d[q] = Simd::load_masked(in.pixels[kPatch * r + q] + c, lanes);
      Form::input(d, rows[r]);
    }
    store_coefficients<Form, Input<Form>, kPatch>(rows, 1.0f, {in.v + c, in.coefficient_pitch});
  }
}

template <typename Form>
void transform_output(const WinogradOutput& out) {
  constexpr int kTile = Form::kTile;
  for (int64_t c = 0; c < out.channels; c += kLanes) {
    const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, out.channels - c));
    const Simd::Reg bias =
        out.bias == nullptr ? Simd::zero() : Simd::load_masked(out.bias + c, lanes);
    Simd::Reg columns[Form::kPatch][kTile];
    load_coefficients<Form, Output<Form>>({out.m + c, out.coefficient_pitch}, 1.0f, columns);
#pragma GCC unroll 4
    for (int y = 0; y < kTile; ++y) {
      Simd::Reg row[Form::kPatch], results[kTile];
#pragma GCC unroll 6
      for (int q = 0; q < Form::kPatch; ++q) row[q] = columns[q][y];
      Form::output(row, results);
#pragma GCC unroll 4
      for (int x = 0; x < kTile; ++x)
        if (out.targets[kTile * y + x] != nullptr)
          Simd::store_masked(out.targets[kTile * y + x] + c, Simd::add(results[x], bias), lanes);
    }
  }
}

template <typename Form>
void transform_grad_output(const WinogradGradOutput& in) {
  constexpr int kTile = Form::kTile;
  for (int64_t c = 0; c < in.channels; c += kLanes) {
    const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, in.channels - c));
    Simd::Reg rows[kTile][Form::kPatch];
#pragma GCC unroll 4
    for (int y = 0; y < kTile; ++y) {
      Simd::Reg d[kTile];
#pragma GCC unroll 4
      for (int x = 0; x < kTile; ++x) d[x] = Simd::load_masked(in.pixels[kTile * y + x] + c, lanes);
      Form::grad_output(d, rows[y]);
    }
    store_coefficients<Form, GradOutput<Form>, kTile>(rows, 1.0f, {in.z + c, in.coefficient_pitch});
  }
}

template <typename Form>
void transform_weight_sums(const WinogradWeightSums& in) {
  for (int64_t c = 0; c < in.channels; c += kLanes) {
    Simd::Reg columns[Form::kPatch][3];
    load_coefficients<Form, WeightSums<Form>>({in.u + c, in.coefficient_pitch}, 0.5f, columns);
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
      Simd::Reg row[Form::kPatch], taps[3];
#pragma GCC unroll 6
      for (int q = 0; q < Form::kPatch; ++q) row[q] = columns[q][r];
      Form::weight_sums(row, taps);
#pragma GCC unroll 3
      for (int q = 0; q < 3; ++q) Simd::store(in.taps + (3 * r + q) * in.tap_pitch + c, taps[q]);
    }
  }
}

// Of the coefficients those at point 1 of both dimensions sum a gradient's tile; a column of real
// points has one complex coefficient, of three products, at its end.
template <typename Form>
constexpr WinogradKernels winograd_form() {
  return {Form::kTile,
          Form::kCoefficients,
          kReal + (Form::kComplex ? 3 : 0) + 1,
          &transform_input<Form>,
          &transform_weights<Form>,
          &transform_output<Form>,
          &transform_grad_output<Form>,
          &transform_weight_sums<Form>};
}

}  // namespace
