// SPDX-License-Identifier: MIT
// Winograd transforms, written once over Simd; instantiated by winograd_ukernels_<isa>.cpp.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/conv2d/winograd_ukernels.h"

namespace {

using fastconv::cpu::WinogradGradOutput;
using fastconv::cpu::WinogradInput;
using fastconv::cpu::WinogradOutput;
using fastconv::cpu::WinogradWeights;
using fastconv::cpu::WinogradWeightSums;

constexpr int64_t kLanes = Simd::kLanes;

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// B^T applied to four values.
inline void input_stage(Simd::Reg d0, Simd::Reg d1, Simd::Reg d2, Simd::Reg d3, Simd::Reg* t) {
  t[0] = Simd::sub(d0, d2);
  t[1] = Simd::add(d1, d2);
  t[2] = Simd::sub(d2, d1);
  t[3] = Simd::sub(d1, d3);
}

// G applied to three values.
inline void weight_stage(Simd::Reg g0, Simd::Reg g1, Simd::Reg g2, Simd::Reg* t) {
  const Simd::Reg half = Simd::set1(0.5f);
  const Simd::Reg outer = Simd::add(g0, g2);
  t[0] = g0;
  t[1] = Simd::mul(half, Simd::add(outer, g1));
  t[2] = Simd::mul(half, Simd::sub(outer, g1));
  t[3] = g2;
}

void transform_weights(const WinogradWeights& w) {
  for (int64_t c = 0; c < w.channels; ++c) {
    for (int64_t i = 0; i < w.rows; i += kLanes) {
      const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, w.rows - i));
      const float* taps = w.taps + c * 9 * w.rows + i;
      Simd::Reg rows[3][4];
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) {
        Simd::Reg g[3];
#pragma GCC unroll 3
        for (int q = 0; q < 3; ++q) {
          const int tap = w.flip ? 8 - 3 * r - q : 3 * r + q;
          g[q] = Simd::load_masked(taps + tap * w.rows, lanes);
        }
        weight_stage(g[0], g[1], g[2], rows[r]);
      }
      float* u = w.u + c * w.rows + i;
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        Simd::Reg columns[4];
        weight_stage(rows[0][q], rows[1][q], rows[2][q], columns);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r)
          Simd::store_masked(u + (4 * r + q) * w.coefficient_pitch, columns[r], lanes);
      }
    }
  }
}

// A^T applied to four values.
inline void output_stage(Simd::Reg m0, Simd::Reg m1, Simd::Reg m2, Simd::Reg m3, Simd::Reg* y) {
  y[0] = Simd::add(Simd::add(m0, m1), m2);
  y[1] = Simd::sub(Simd::sub(m1, m2), m3);
}

void transform_input(const WinogradInput& in) {
  for (int64_t c = 0; c < in.channels; c += kLanes) {
    const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, in.channels - c));
    Simd::Reg rows[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
      input_stage(Simd::load_masked(in.pixels[4 * r] + c, lanes),
                  Simd::load_masked(in.pixels[4 * r + 1] + c, lanes),
                  Simd::load_masked(in.pixels[4 * r + 2] + c, lanes),
                  Simd::load_masked(in.pixels[4 * r + 3] + c, lanes), rows[r]);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      Simd::Reg columns[4];
      input_stage(rows[0][q], rows[1][q], rows[2][q], rows[3][q], columns);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r)
        Simd::store(in.v + (4 * r + q) * in.coefficient_pitch + c, columns[r]);
    }
  }
}

void transform_output(const WinogradOutput& out) {
  for (int64_t c = 0; c < out.channels; c += kLanes) {
    const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, out.channels - c));
    const Simd::Reg bias =
        out.bias == nullptr ? Simd::zero() : Simd::load_masked(out.bias + c, lanes);
    const float* m = out.m + c;
    Simd::Reg columns[4][2];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q)
      output_stage(Simd::load(m + q * out.coefficient_pitch),
                   Simd::load(m + (4 + q) * out.coefficient_pitch),
                   Simd::load(m + (8 + q) * out.coefficient_pitch),
                   Simd::load(m + (12 + q) * out.coefficient_pitch), columns[q]);
#pragma GCC unroll 2
    for (int y = 0; y < 2; ++y) {
      Simd::Reg pair[2];
      output_stage(columns[0][y], columns[1][y], columns[2][y], columns[3][y], pair);
#pragma GCC unroll 2
      for (int x = 0; x < 2; ++x)
        if (out.targets[2 * y + x] != nullptr)
          Simd::store_masked(out.targets[2 * y + x] + c, Simd::add(pair[x], bias), lanes);
    }
  }
}

// A applied to two values.
inline void grad_stage(Simd::Reg y0, Simd::Reg y1, Simd::Reg* m) {
  m[0] = y0;
  m[1] = Simd::add(y0, y1);
  m[2] = Simd::sub(y0, y1);
  m[3] = Simd::sub(Simd::zero(), y1);
}

void transform_grad_output(const WinogradGradOutput& in) {
  for (int64_t c = 0; c < in.channels; c += kLanes) {
    const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, in.channels - c));
    Simd::Reg rows[2][4];
#pragma GCC unroll 2
    for (int y = 0; y < 2; ++y)
      grad_stage(Simd::load_masked(in.pixels[2 * y] + c, lanes),
                 Simd::load_masked(in.pixels[2 * y + 1] + c, lanes), rows[y]);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      Simd::Reg columns[4];
      grad_stage(rows[0][q], rows[1][q], columns);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r)
        Simd::store(in.z + (4 * r + q) * in.coefficient_pitch + c, columns[r]);
    }
  }
}

// G^T applied to four values.
inline void weight_sum_stage(Simd::Reg u0, Simd::Reg u1, Simd::Reg u2, Simd::Reg u3, Simd::Reg* g) {
  const Simd::Reg half = Simd::set1(0.5f);
  const Simd::Reg even = Simd::mul(half, Simd::add(u1, u2));
  g[0] = Simd::add(u0, even);
  g[1] = Simd::mul(half, Simd::sub(u1, u2));
  g[2] = Simd::add(even, u3);
}

void transform_weight_sums(const WinogradWeightSums& in) {
  for (int64_t c = 0; c < in.channels; c += kLanes) {
    const float* u = in.u + c;
    Simd::Reg rows[4][3];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
      weight_sum_stage(Simd::load(u + (4 * r) * in.coefficient_pitch),
                       Simd::load(u + (4 * r + 1) * in.coefficient_pitch),
                       Simd::load(u + (4 * r + 2) * in.coefficient_pitch),
                       Simd::load(u + (4 * r + 3) * in.coefficient_pitch), rows[r]);
#pragma GCC unroll 3
    for (int q = 0; q < 3; ++q) {
      Simd::Reg columns[3];
      weight_sum_stage(rows[0][q], rows[1][q], rows[2][q], rows[3][q], columns);
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) Simd::store(in.taps + (3 * r + q) * in.tap_pitch + c, columns[r]);
    }
  }
}

}  // namespace
