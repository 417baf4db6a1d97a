// SPDX-License-Identifier: MIT
// A "vector" of one float32 in plain C++: the portable baseline. Same interface as simd_avx512.h.
#pragma once

#include <cstdint>

namespace {

struct Simd {
  using Reg = float;
  using Mask = bool;
  static constexpr int kLanes = 1;

  static Reg zero() { return 0.0f; }
  static Reg set1(float x) { return x; }
  static Reg load(const float* p) { return *p; }
  static void store(float* p, Reg x) { *p = x; }

  static Reg load_masked(const float* p, Mask m) { return m ? *p : 0.0f; }
  static void store_masked(float* p, Reg x, Mask m) {
    if (m) *p = x;
  }

  static Mask mask_first(int64_t n) { return n > 0; }
  static Mask mask_range(int64_t begin, int64_t end) { return begin == 0 && end == 1; }

  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg mul(Reg a, Reg b) { return a * b; }

  static float reduce_add(Reg x) { return x; }

  static Reg even_lanes(Reg low, Reg /*high*/) { return low; }

  // Lanes of a and b in turns: a0 b0 a1 b1 ...
  static void interleave(Reg a, Reg b, Reg* low, Reg* high) {
    *low = a;
    *high = b;
  }

  static void transpose(Reg /*rows*/[kLanes]) {}
};

}  // namespace
