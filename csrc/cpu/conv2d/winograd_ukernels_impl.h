// SPDX-License-Identifier: MIT
// Winograd transforms, written once over Simd; instantiated by winograd_ukernels_<isa>.cpp.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/conv2d/winograd_ukernels.h"

namespace {

using fastconv::cpu::WinogradInput;
using fastconv::cpu::WinogradOutput;
using fastconv::cpu::WinogradWeights;

constexpr int64_t kLanes = Simd::kLanes;

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// B^T applied to four values.
inline void input_stage(Simd::Reg d0, Simd::Reg d1, Simd::Reg d2, Simd::Reg d3, Simd::Reg* t) {
  t[0] = Simd::sub(d0, d2);
  t[1] = Simd::add(d1, d2);
  t[2] = Simd::sub(d2, d1);
  t[3] = Simd::sub(d1, d3);
}

void transform_input(const WinogradInput& in) {
  const int64_t line = in.tiles + 1;
  for (int64_t c = 0; c < in.channels; ++c) {
    const float* patch = in.patch + c * 8 * line;
    for (int64_t t = 0; t < in.tiles; t += kLanes) {
      const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, in.tiles - t));
      Simd::Reg rows[4][4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const float* even = patch + 2 * r * line + t;
        const float* odd = even + line;
        input_stage(Simd::load_masked(even, lanes), Simd::load_masked(odd, lanes),
                    Simd::load_masked(even + 1, lanes), Simd::load_masked(odd + 1, lanes), rows[r]);
      }
      float* v = in.v + c * in.channel_pitch + t;
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        Simd::Reg columns[4];
        input_stage(rows[0][q], rows[1][q], rows[2][q], rows[3][q], columns);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r)
          Simd::store_masked(v + (4 * r + q) * in.coefficient_pitch, columns[r], lanes);
      }
    }
  }
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

// Interleaves even and odd columns and stores the first `count` of 2 * kLanes floats.
inline void store_pairs(float* target, Simd::Reg even, Simd::Reg odd, int64_t count) {
  Simd::Reg low, high;
  Simd::interleave(even, odd, &low, &high);
  Simd::store_masked(target, low, Simd::mask_first(min_of(count, kLanes)));
  if (count > kLanes)
    Simd::store_masked(target + kLanes, high, Simd::mask_first(min_of(count - kLanes, kLanes)));
}

void transform_output(const WinogradOutput& out) {
  for (int64_t i = 0; i < out.rows; ++i) {
    const Simd::Reg bias = out.bias == nullptr ? Simd::zero() : Simd::set1(out.bias[i]);
    for (int64_t t = 0; t < out.tiles; t += kLanes) {
      const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, out.tiles - t));
      const float* m = out.m + i * out.row_pitch + t;
      Simd::Reg columns[4][2];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q)
        output_stage(Simd::load_masked(m + q * out.coefficient_pitch, lanes),
                     Simd::load_masked(m + (4 + q) * out.coefficient_pitch, lanes),
                     Simd::load_masked(m + (8 + q) * out.coefficient_pitch, lanes),
                     Simd::load_masked(m + (12 + q) * out.coefficient_pitch, lanes), columns[q]);
      float* target = out.output + i * out.out_channel + 2 * t;
      const int64_t count = min_of(2 * kLanes, out.out_columns - 2 * t);
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y) {
        Simd::Reg pair[2];
        output_stage(columns[0][y], columns[1][y], columns[2][y], columns[3][y], pair);
        if (y < out.out_rows)
          store_pairs(target + y * out.out_row, Simd::add(pair[0], bias), Simd::add(pair[1], bias),
                      count);
      }
    }
  }
}

}  // namespace
