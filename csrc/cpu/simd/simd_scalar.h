// SPDX-License-Identifier: MIT
// A "vector" of one float32 in plain C++: the portable baseline. Same interface as simd_avx512.h.
#pragma once

#include <cstdint>

namespace {

struct Simd {
  using Reg = float;
  using Mask = bool;
  using Ints = int32_t;
  static constexpr int kLanes = 1;

  static Reg zero() { return 0.0f; }
  static Reg set1(float x) { return x; }
  static void keep(Reg& /*x*/) {}
  static Reg load(const float* p) { return *p; }
  static void store(float* p, Reg x) { *p = x; }
  static void stream(float* p, Reg x) { *p = x; }
  static void stream_fence() {}

  // bfloat16, the upper half of a float; narrowed to the nearest, ties to even, a NaN stays one.
  static Reg load_bfloat16(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
  }
  static void store_bfloat16(uint16_t* p, Reg x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    bits = x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
    *p = static_cast<uint16_t>(bits >> 16);
  }

  static Reg load_masked(const float* p, Mask m) { return m ? *p : 0.0f; }
  static void store_masked(float* p, Reg x, Mask m) {
    if (m) *p = x;
  }

  static Reg load_masked_or(const float* p, Mask m, Reg fill) { return m ? *p : fill; }
  static Reg load_strided_or(const float* p, int64_t /*step*/, Mask m, Reg fill) {
    return m ? *p : fill;
  }

  static Mask mask_first(int64_t n) { return n > 0; }
  static Mask mask_range(int64_t begin, int64_t end) { return begin == 0 && end == 1; }

  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg mul(Reg a, Reg b) { return a * b; }

  static Reg div(Reg a, Reg b) { return a / b; }

  static Reg min(Reg a, Reg b) { return a < b ? a : b; }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }
  // Adding 1.5 * 2^23 leaves no bits for a fraction.
  static Reg round(Reg x) { return (x + 12582912.0f) - 12582912.0f; }
  static Reg abs(Reg x) { return __builtin_fabsf(x); }
  static Reg copy_sign(Reg x, Reg y) { return __builtin_copysignf(x, y); }
  static Reg times_power_of_two(Reg x, Reg n) {
    if (n != n) return n;
    const auto power = static_cast<int32_t>(n);
    const int32_t half = power >> 1;
    return x * power_of_two(half) * power_of_two(power - half);
  }
  // 2^n for n in [-126, 127].
  static float power_of_two(int32_t n) {
    const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
    float result;
    __builtin_memcpy(&result, &bits, sizeof result);
    return result;
  }

  static Mask greater_or_nan(Reg x, Reg y) { return x > y || x != x; }
  static Mask not_greater_nor_nan(Reg x, Reg y) { return !greater_or_nan(x, y); }
  // Lanes in which x > 0 or x is NaN.
  static Mask positive_or_nan(Reg x) { return !(x <= 0.0f); }
  // Lanes in which x is not zero, or is NaN.
  static Mask nonzero(Reg x) { return x != 0.0f; }
  static Reg max_or_nan(Reg x, Reg y) { return greater_or_nan(x, y) ? x : y; }
  static Reg select(Mask m, Reg x, Reg y) { return m ? x : y; }
  static Reg add_masked(Reg a, Mask m, Reg x) { return m ? a + x : a; }

  static Ints set1_int(int32_t x) { return x; }
  static Ints load_ints(const int32_t* p) { return *p; }
  static Ints select_int(Mask m, Ints x, Ints y) { return m ? x : y; }
  static Ints add_int(Ints x, Ints y) { return x + y; }
  static Ints mul_int(Ints x, Ints y) { return x * y; }
  static Mask equal_int(Ints x, Ints y) { return x == y; }

  static Ints lane_numbers() { return 0; }
  static Reg permute(Reg x, Ints /*index*/) { return x; }
  static Ints permute_int(Ints x, Ints /*index*/) { return x; }
  static Reg pick_of_two(Reg low, Reg high, Ints index) { return index == 0 ? low : high; }
  static Reg pick(const Reg parts[4], Ints index) { return parts[index]; }
  static void first_maximum(Reg x, Ints number, float* maximum, int32_t* at) {
    *maximum = x;
    *at = number;
  }

  static void store_first(uint8_t* p, Ints x, int64_t n) {
    if (n > 0) *p = static_cast<uint8_t>(x);
  }
  static void store_first(int32_t* p, Ints x, int64_t n) {
    if (n > 0) *p = x;
  }
  static int64_t store_selected(float* p, int32_t* q, Reg x, Ints y, Mask m) {
    *p = x;
    *q = y;
    return m ? 1 : 0;
  }
  template <typename Offset>
  static Ints load_range(const Offset* p, int64_t begin, int64_t end, Mask /*m*/) {
    return begin == 0 && end == 1 ? *p : 0;
  }
  template <typename Offset>
  static Ints load_all(const Offset* p) {
    return *p;
  }

  static float reduce_add(Reg x) { return x; }

  static Reg even_lanes(Reg low, Reg /*high*/) { return low; }
  static Reg odd_lanes(Reg /*low*/, Reg high) { return high; }
  static void interleave(Reg even, Reg odd, Reg* low, Reg* high) {
    *low = even;
    *high = odd;
  }

  static Reg reduce_add_rows(const Reg rows[kLanes]) { return rows[0]; }

  static void transpose(Reg /*rows*/[kLanes]) {}
};

}  // namespace
