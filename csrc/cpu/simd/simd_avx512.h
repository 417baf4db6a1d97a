// SPDX-License-Identifier: MIT
// One vector of float32 on AVX-512 (F, DQ, BW, VL). Same interface as simd_avx2.h and
// simd_scalar.h; exactly one of the three is included per translation unit, everything has internal
// linkage.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Simd {
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }

  // Lanes outside the mask read as zero; memory outside the mask is not touched.
  static Reg load_masked(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static void store_masked(float* p, Reg x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }

  // Lanes [0, n), 0 <= n <= kLanes.
  static Mask mask_first(int64_t n) { return static_cast<Mask>((uint32_t{1} << n) - 1); }
  // Lanes [begin, end), 0 <= begin <= end <= kLanes.
  static Mask mask_range(int64_t begin, int64_t end) {
    return static_cast<Mask>(mask_first(end) & ~mask_first(begin));
  }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }

  // Sum of all lanes, pairwise.
  static float reduce_add(Reg x) { return _mm512_reduce_add_ps(x); }

  // Lanes 0, 2, 4, ... of the 2 * kLanes floats in (low, high).
  static Reg even_lanes(Reg low, Reg high) {
    const __m512i index =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(low, index, high);
  }

  // Lanes of a and b in turns: a0 b0 a1 b1 ...
  static void interleave(Reg a, Reg b, Reg* low, Reg* high) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    *low = _mm512_permutex2var_ps(a, first, b);
    *high = _mm512_permutex2var_ps(a, second, b);
  }

  // rows[i][j] <-> rows[j][i] of a 16 x 16 block held in registers: four rounds of 16 shuffles.
  static void transpose(Reg rows[kLanes]) {
    Reg t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
      const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
      rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // rows[4 * i + j] now holds, per 128-bit quarter q, column 4 * q + j of source rows 4i .. 4i+3.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      t[j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88);
      t[4 + j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
      t[8 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
      t[12 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      rows[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
      rows[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
      rows[4 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0x88);
      rows[12 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0xdd);
    }
  }
};

}  // namespace
